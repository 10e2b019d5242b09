import contextlib

import hypothesis.strategies as st
import pytest
from hypothesis import given

from finetune_jax.errors import UserError
from finetune_jax.grammar import Call, call, parse, parse_sequence, print_sum

NAMES = (
    st.from_regex(r"[a-z][a-z_0-9]{0,6}", fullmatch=True)
    .filter(
        lambda s: s not in ("as", "in", "is", "if", "or", "and", "not", "def", "for", "del", "try")
    )
    .filter(str.isidentifier)
    .filter(lambda s: not __import__("keyword").iskeyword(s))
)
DOORS = st.tuples(st.lists(NAMES, min_size=1, max_size=3), NAMES).map(
    lambda parts: f"{'.'.join(parts[0])}:{parts[1]}"
)
VALUES = st.one_of(
    st.integers(-99, 99),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text(max_size=5),
    # Strings with a door, with quotes, or with an identifier that could replace a door for the
    # parser.
    st.lists(st.one_of(DOORS, st.sampled_from(["'", '"', "\\", "door0_0", " + "])), max_size=4).map(
        "".join
    ),
    st.dictionaries(st.one_of(st.none(), st.booleans()), st.booleans(), max_size=2),
)
CALLS = st.builds(
    lambda name, args, kwargs: Call(name, tuple(args), tuple(sorted(kwargs.items()))),
    st.one_of(NAMES, DOORS, st.sampled_from(["door0_0", "door1_0"])),
    st.lists(VALUES, max_size=3),
    st.dictionaries(NAMES, VALUES, max_size=2),
)


@given(st.lists(CALLS, min_size=1, max_size=4))
def test_parse_undoes_printing(terms):
    assert parse(" + ".join(map(str, terms))) == tuple(terms)


@given(st.lists(st.lists(CALLS, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3))
def test_parse_sequence_undoes_printing(sums):
    assert parse_sequence(" >> ".join(map(print_sum, sums))) == tuple(sums)


@given(CALLS)
def test_a_call_is_what_its_text_parses_to(made):
    assert call(made.name, *made.args, **dict(made.kwargs)) == made == parse(str(made))[0]


def test_a_door_is_a_name_wherever_a_name_is():
    first, second = parse_sequence("a.b:c('x:y', d=\"e:f\") + g >> a:b")
    assert first == (Call("a.b:c", ("x:y",), (("d", "e:f"),)), Call("g"))
    assert second == (Call("a:b"),)
    assert parse("f({True:None})") == (Call("f", ({True: None},)),)


@pytest.mark.parametrize(
    "text", ["a:b:c", "a:b.c", "a: b", ":a", "a:", "1a:b", "f(a:b)", "f(x=a:b)"]
)
def test_what_is_no_door_is_refused(text):
    with pytest.raises(UserError, match="cannot read"):
        parse(text)


def test_a_message_shows_the_door_that_was_written():
    with pytest.raises(UserError) as error:
        parse("a.b:c(d:e) + f:g")
    assert "arguments of 'a.b:c'" in str(error.value) and "'a.b:c(d:e)'" in str(error.value)


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
