"""Names in any script: figures without boxes or warnings, pages in the direction of the text."""

import re
import warnings

import matplotlib
import numpy as np
import pytest

from finetune_jax.ablation.report import drawing
from finetune_jax.reporting import charts, fonts, html

NAMES = [
    *("cat", "猫と犬", "قطة", "🐈", "한국어", "naïve", "ไทย", "$x^2$", "a\u202eb"),
    *("👨\u200d👩", "❤\ufe0f"),
]
MISSING = ["猫と犬", "🐈", "한국어", "ไทย", "👨\u200d👩"]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_what_a_figure_can_draw():
    shapes = matplotlib.__version_info__[:2] >= (3, 11)
    missing = MISSING if shapes else [MISSING[0], "قطة", *MISSING[1:]]
    assert [name for name in NAMES if not fonts.drawable(name)] == missing
    assert fonts.drawn("n\u0303a 猫") == r"ña \u732b"
    assert charts.class_label("猫", 3) == "#3" and charts.class_label("cat", 3) == "cat"
    assert charts.class_label("a\u202eb", 4) == r"a\u202eb"  # what acts on a terminal is escaped
    assert charts.label("猫 $") == r"\u732b \$"
    assert charts.numbered(["a", "b"]) == "" and "number" in charts.numbered(["a", "猫"])


def test_older_versions_do_not_join_letters(monkeypatch):
    fonts._characters.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(matplotlib, "__version_info__", (3, 9, 0))
        assert not fonts.drawable("قطة") and not fonts.drawable("שלום") and fonts.drawable("naïve")
    fonts._characters.cache_clear()


def test_figures_of_any_name_have_no_warnings():
    table = np.eye(len(NAMES), dtype=np.int64) * 3
    assert charts.confusion(table, NAMES).count("<svg") == 2
    with drawing.new_drawing("name", "title", 4, 3) as (grid, drawn):
        grid[0][0].plot([0, 1], [0, 1])
        drawing.label_beside(grid[0][0], [(0, 0, "猫 lora"), (1, 1, "قطة")])
    assert drawn.svg and drawn.png and drawn.pdf


def test_pages_isolate_names_that_are_read_from_the_right():
    body = html.table(["class", "n"], [["قطة", 3], ["猫", 2], ["🐈 & <b>", 1]], numeric=(1,))
    assert "<td><bdi>قطة</bdi></td>" in body and "<td>猫</td>" in body
    assert "🐈 &amp; &lt;b&gt;" in body
    page = html.page("שלום", "", [("猫", body)], "")
    assert '<meta charset="utf-8">' in page and page.encode().decode() == page
    assert re.search(r"<h1><bdi>שלום</bdi></h1>", page)
