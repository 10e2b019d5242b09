"""The page of a run: complete, self-contained, and sortable in a browser."""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from browser import told_by
from commands import run_command

from finetune_jax.evaluation.evaluator import open_run
from finetune_jax.evaluation.predictions import Predictions, load_predictions
from finetune_jax.files import plain
from finetune_jax.reporting import charts
from finetune_jax.reporting import html as pieces
from finetune_jax.reporting.mistakes import _loss, mistakes
from finetune_jax.reporting.page import _classes
from finetune_jax.tasks.regression import Regression

# Only these attributes make a browser fetch an address.
FETCHING = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """The facts about a page that tests check: headings, figures, tables, addresses, open tags."""

    def __init__(self, content):
        super().__init__()
        self.open, self.addresses, self.headings, self.images, self.rows = [], [], [], [], {}
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.addresses += [v for k, v in attributes if k in FETCHING]
        if tag == "img":
            self.images.append(values["alt"])
        if tag == "figure":
            self.images.append(values["aria-label"])
        if tag == "tr" and self.headings:
            self.rows[self.headings[-1]] = self.rows.get(self.headings[-1], 0) + 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def written(short_run, tmp_path_factory):
    """(page, output of the command, folder) of one call with all flags that measure something."""
    folder = tmp_path_factory.mktemp("report")
    process = run_command(
        "evaluate", f"--workdir={short_run}", f"--report={folder / 'page.html'}",
        f"--save_predictions={folder / 'p.npz'}", "--temperature", "--selective", "--drift",
        "--knn", "--few_shot=1,2", "--corruptions=contrast,brightness", "--severity=1,5",
        "--shifts=cifar10_1", f"--data_dir={folder}", f"--against={short_run}",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return (folder / "page.html").read_text(), json.loads(process.stdout), folder


def test_the_command_gives_the_results_of_all_its_flags(written, short_run):
    _, found, folder = written
    own = json.loads((short_run / "result.json").read_text())["test"]
    assert found["accuracy"] == own["accuracy"] and found["n_scored"] == 50
    assert found["temperature_scaling"].keys() >= {"temperature", "ece_before", "ece_after"}
    assert found["selective"]["coverage"][-1] == 1
    assert found["probes"].keys() == {"knn20", "few_shot1", "few_shot2"}
    assert found["drift"]["feature_drift"] > 0
    assert found["against"]["p_mcnemar"] == 1 and found["against"]["n"] == 50
    assert [len(v) for v in found["corruptions"]["scores"].values()] == [2, 2]
    assert found["corruptions"]["clean"] == own["accuracy"]
    assert "not_run" in found["shifts"]["cifar10_1"]
    saved = load_predictions(folder / "p.npz")
    assert plain(saved.scores()) == {k: found[k] for k in saved.scores()}


def test_a_page_has_every_section_and_no_address_outside_itself(written):
    content, *_ = written
    page = Page(content)
    assert page.open == []
    assert page.headings == [
        "Scores", "Learning curves", "Classes", "Calibration", "Selective prediction",
        "Most confident mistakes", "Against another model", "Common corruptions",
        "Shifted test sets", "Probes of the features", "Drift of the features",
        "Movement of the parameters", "Plan", "Weight file", "Config",
    ]  # fmt: skip
    assert all(a.startswith(("data:image/", "#")) for a in page.addresses)
    assert not re.search(r"@import|url\((?!#)|<link|<iframe", content)
    assert "default-src 'none'" in content
    for figure in ("loss and accuracy", "confusion matrix", "reliability", "error against",
                   "score by corruption", "relative change"):  # fmt: skip
        assert any(figure in alternative for alternative in page.images), figure
    assert sum(a.startswith("example ") for a in page.images) == 18
    plan = content[content.index("<h2>Plan") : content.index("<h2>Weight file")]
    trains = [cells[3] != "frozen" for row in plan.split("<tr>")[2:]
              if (cells := re.findall(r"<td[^>]*>(.*?)</td>", row))]  # fmt: skip
    assert any(trains) and trains == sorted(trains, reverse=True)  # what trains is first
    assert "--shifts=cifar10_1" in content[content.index("<h2>Config") :]  # how to repeat it
    assert page.rows["Plan"] == 1 + 23  # a header, and the leaves of ResNet-8
    assert page.rows["Weight file"] >= 1 + 35 - 2


def test_a_page_calls_scores_by_names_that_people_know_and_shares_in_per_cent(written):
    content, found, _ = written
    assert found["result"] in content and found["result"].startswith("Accuracy is ")
    raw = (
        r"\b(aurc|ece|nll|macro_f1|top5|auroc|few_shot\d|knn20|p_mcnemar|feature_drift|n_scored)\b"
    )
    said = content[content.index("<h2>") : content.index("<h2>Config")]
    assert not re.findall(raw, re.sub(r"<svg.*?</svg>", "", said, flags=re.S))
    assert not re.findall(raw, "".join(re.findall(r"<text.*?</text>", said, re.S)))
    classes = content[content.index("<h2>Classes") : content.index("<h2>Calibration")]
    assert "recall, %" in classes
    known = [v["recall"] for v in found["per_class"].values() if v["recall"] is not None]
    assert all(f">{100 * recall:.1f}</td>" in classes for recall in known)
    assert ">accuracy, %</text>" in content and "area under the curve" in content


def test_a_task_of_real_values_has_its_predictions_on_the_page():
    evaluator = SimpleNamespace(task=Regression())
    observed = {"predicted": np.float32([-1.5, 2.0]), "label": np.float32([-1.0, 2.5]),
                "loss": np.ones(2, np.float32)}  # fmt: skip
    ((heading, body),) = _classes(evaluator, SimpleNamespace(observed=observed))
    assert heading == "Predictions" and "predictions against targets" in body
    assert _loss(observed, 0) == "predicted -1.5<br>label -1<br>loss 1.0000, example\xa00"


def test_the_steps_of_a_run_that_was_evaluated_once_are_whole_numbers():
    rows = [{"step": s, "split": "train", "loss": 1 / s} for s in range(1, 10)]
    rows.append({"step": 9, "split": "validation", "loss": 0.2, "rmse": 2.0})
    svg = charts.curves(rows, "rmse")
    assert "root mean squared error" in svg and "8.6" not in svg


def test_in_a_browser_a_click_sorts_and_nothing_is_fetched(written, tmp_path):
    script = """
      const heads = [...document.querySelectorAll("#s13 th button")];
      const column = (i) => [...document.querySelectorAll("#s13 tbody tr")].map(
        (row) => row.cells[i].textContent);
      told.before = column(0);
      heads[2].click(); told.up = column(2);
      heads[2].click(); told.down = column(2);
      heads[0].click(); told.names = column(0);
    """
    told = told_by(written[0], script, tmp_path)
    assert told["figures"] == 6
    numbers = [int(x.replace(",", "")) for x in told["up"]]
    assert numbers == sorted(numbers) and numbers[0] < numbers[-1]
    assert [int(x.replace(",", "")) for x in told["down"]] == numbers[::-1]
    assert sorted(told["before"]) == sorted(told["names"]) and told["names"][0].startswith("head")
    assert told["requests"] == []
    assert told["wide"] <= 0
    assert told["broken"] == 0


def test_what_a_dataset_says_is_text_on_the_page(short_run):
    evaluator = open_run(short_run)
    observed = evaluator.observe("test")
    observed["logits"] = -observed["logits"]
    task = evaluator.task.__class__(tuple(f"<script>{i}</script>" for i in range(10)))
    hostile = evaluator.__class__(
        **{f: getattr(evaluator, f) for f in evaluator.__dataclass_fields__} | {"task": task}
    )
    seen = Predictions(task, observed, np.zeros(50, np.uint64), {"split": "test"})
    ((_, body),) = mistakes(hostile, seen, short_run)
    assert "<script>" not in body and "&lt;script&gt;" in body


def test_numbers_for_people():
    cases = {
        0.95555: "0.9556", 0.0: "0.0000", 1e-5: "1e-05", 123456.0: "1.23e+05", 12: "12",
        1234567: "1,234,567", None: "–", float("nan"): "–", True: "yes",
    }  # fmt: skip
    for value, shown in cases.items():
        assert pieces.number(value) == shown


def test_undefined_scores_are_null_in_json():
    assert plain({"a": float("nan"), "b": [1.0, float("inf")]}) == {"a": None, "b": [1.0, None]}


@pytest.mark.parametrize("classes", [2, 12, pytest.param(40, marks=pytest.mark.slow)])
def test_figures_are_the_same_text_every_time(classes):
    table = np.random.default_rng(0).integers(0, 9, (classes, classes))
    names = [f"class {i}" for i in range(classes)]
    first = charts.confusion(table, names)
    assert first == charts.confusion(table, names)
    assert "<svg" in first


def test_figures_of_little_data_are_drawn():
    assert "<svg" in charts.curves([], "accuracy")
    assert "<svg" in charts.scatter(np.zeros(1), np.zeros(1))
    assert "<svg" in charts.movement([{"stage": "head", "relative": 0.5}])


def test_a_curve_of_one_point_is_seen_and_ticks_are_whole_steps():
    rows = [{"step": 3, "split": "train", "loss": 1.0},
            {"step": 3, "split": "validation", "loss": 2.0, "accuracy": 0.5},
            {"step": 6, "split": "validation", "loss": 1.5, "accuracy": 0.75}]  # fmt: skip
    found = charts.curves(rows, "accuracy")
    wide, narrow = found.split('<div class="narrow">')
    for form in (wide, narrow):
        # "train" has a marker at its point, beside the one in the legend.
        assert len(re.findall(r"<use [^>]*stroke: var\(--faint\)", form)) >= 2
        steps = form[form.index("matplotlib.axis_1") : form.index("matplotlib.axis_2")]
        ticks = [float(x) for x in re.findall(r">([\d.]+)</text>", steps)]
        assert ticks and all(x == int(x) for x in ticks)


def test_figures_have_the_colours_of_the_theme_and_ids_of_their_own():
    figures = [charts.risk_coverage(np.linspace(0, 1, 5), np.linspace(0, top, 5)) for top in (1, 2)]
    ids = [set(re.findall(r' id="([^"]+)"', figure)) for figure in figures]
    assert ids[0] and not ids[0] & ids[1]
    for figure, own in zip(figures, ids, strict=True):
        assert "var(--main)" in figure and "var(--ink)" in figure
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', figure)) <= own
        assert not re.search("#1f2933|#1f6fb2", figure)
