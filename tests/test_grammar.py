import contextlib

import hypothesis.strategies as st
import pytest
from hypothesis import given

from finetune_jax.errors import UserError
from finetune_jax.grammar import Call, parse

NAMES = (
    st.from_regex(r"[a-z][a-z_0-9]{0,6}", fullmatch=True)
    .filter(
        lambda s: s not in ("as", "in", "is", "if", "or", "and", "not", "def", "for", "del", "try")
    )
    .filter(str.isidentifier)
    .filter(lambda s: not __import__("keyword").iskeyword(s))
)
VALUES = st.one_of(
    st.integers(-99, 99), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5)
)
CALLS = st.builds(
    lambda name, args, kwargs: Call(name, tuple(args), tuple(sorted(kwargs.items()))),
    NAMES,
    st.lists(VALUES, max_size=3),
    st.dictionaries(NAMES, VALUES, max_size=2),
)


@given(st.lists(CALLS, min_size=1, max_size=4))
def test_parse_undoes_printing(terms):
    assert parse(" + ".join(map(str, terms))) == tuple(terms)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_with_a_user_error(text):
    with contextlib.suppress(UserError):
        parse(text)


@pytest.mark.parametrize(
    "text", ["", "a b", "a - b", "a.b(1)", "f(open('x'))", "f(x)", "(lambda: 1)()", "f(*[1])", "2"]
)
def test_what_is_not_a_sum_of_calls_is_refused(text):
    with pytest.raises(UserError, match="cannot read"):
        parse(text)
