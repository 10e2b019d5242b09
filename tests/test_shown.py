"""Names with control characters are shown in terminals, figures and pages without any effect."""

import numpy as np
import pytest

from finetune_jax.errors import UserError
from finetune_jax.progress import say
from finetune_jax.reporting import charts, figures, html
from finetune_jax.tables import shorten, shown, table

EVIL = (
    "\x1b[2J\x1b[31mred", "two\nlines\r", "a\u202egpj.exe", "\x07bell\x00", "$\\frac{1}$", "$x",
    "n" * 240, "\u200b", "bytes \udc80", "<b>&", "normal é 漢 👩\u200d🔬",
)  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
def test_nothing_acts_on_a_terminal(name, capsys):
    say(f"class {name}")
    assert not _acts(capsys.readouterr().err.replace("\n", ""))
    for text in (shown(name), shown(name, lines=True).replace("\n", ""), shorten(name, 40)):
        assert not _acts(text)
    assert len(shorten(name, 40)) <= 40
    lines = table(["name", "n"], [[name, "1"]]).split("\n")
    assert len(lines) == 3 and not any(map(_acts, lines))


def _acts(text):
    text = text.replace("\u200d", "")
    return not text.isprintable()


def test_escapes_of_characters():
    assert shown("\x1b[31m") == r"\x1b[31m" and shown("a\nb") == r"a\nb"
    assert shown("a\n\tb\r", lines=True) == "a\n\tb\\r"
    assert shown(EVIL[2]) == r"a\u202egpj.exe" and shown(EVIL[8]) == r"bytes \udc80"
    assert shown(EVIL[-1]) == EVIL[-1] and shown(3) == "3"
    assert shorten("abcdefghij", 7) == "abc…hij" and shorten("abc", 7) == "abc"


def test_the_message_of_an_error_does_not_act(capsys):
    from finetune_jax.ending import report

    assert report(UserError("no class '\x1b[2J'")) == 2
    assert capsys.readouterr().err == "error: no class '\\x1b[2J'\n"


def test_figures_take_any_name(tmp_path):
    names = list(EVIL)
    svg = charts.confusion(np.eye(len(names), dtype=np.int64), names)
    assert "\\x1b[2J" in svg and "\x1b" not in svg and "n" * 40 not in svg
    plain = charts.confusion(np.eye(2, dtype=np.int64), ["$a_b^2$", "$"])
    assert ">$a_b^2$</text>" in plain
    rows = [{"alpha": a, "accuracy": a} for a in (0.0, 1.0)]
    figures.interpolation(rows, EVIL[4:6], "accuracy", tmp_path / "a.png")
    figures.stage_profile([{"stage": n, "rgn": 1.0, "snr": 1.0} for n in names], tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size and (tmp_path / "b.png").stat().st_size


def test_pages_show_any_name():
    assert html.text("<b>\x1b&\u202e\n") == "&lt;b&gt;\\x1b&amp;\\u202e\n"
