"""Figures of an ablation show the available data and can be read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import RATE, make_outcome, make_row, regressed, rights

from finetune_jax.ablation.report import sensitivity
from finetune_jax.ablation.report.drawing import label_beside, new_drawing
from finetune_jax.ablation.report.extra_columns import extra_columns
from finetune_jax.ablation.report.figures import figures
from finetune_jax.ablation.report.stage_map import stage_map, stage_scores
from finetune_jax.ablation.report.statistics import compare
from finetune_jax.ablation.report.write import write_report
from finetune_jax.ablation.search.base import Trial


def test_corruptions_outside_the_main_fifteen_are_averaged_where_there_are_no_others(tmp_path):
    found = {0: {"mean": {"spatter": 0.5, "saturate": 0.7}, "mean_corrupted": None, "main": []}}
    row = make_row(tmp_path, "a", rights(0.5, seeds=(0,)), others={"corruptions": found})
    (extra,) = extra_columns([row], "accuracy")
    assert extra.estimates["a"].value == pytest.approx(0.6) and extra.shifted


points = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.5, 0.5001, 0.51, 1.0]) | st.floats(0, 1)),
    min_size=1,
    max_size=14,
)


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(points)
def test_labels_do_not_overlap(places):
    with new_drawing("x", "x", 7, 4.0) as (grid, _):
        axes = grid[0, 0]
        axes.plot(*zip(*places, strict=True), "o")
        label_beside(axes, [(x, y, f"row {i}") for i, (x, y) in enumerate(places)])
        axes.figure.draw_without_rendering()
        # The text alone: an annotation's own box has its arrow in it.
        boxes = sorted(
            (super(type(t), t).get_window_extent() for t in axes.texts), key=lambda b: b.y0
        )
        right = axes.get_window_extent().x1
        assert len(boxes) == len(places)
        assert all(b.x0 > right and b.x1 <= axes.figure.bbox.x1 + 1 for b in boxes)
        assert all(one.y1 <= two.y0 + 0.5 for one, two in zip(boxes, boxes[1:], strict=False))


def test_what_is_tuned_is_shown_as_the_metric_itself(tmp_path):
    from matplotlib.figure import Figure

    tried = (Trial({RATE: 0.01}, 1.0, -3.0), Trial({RATE: 0.1}, 1.0, -2.0),
             Trial({RATE: 1.0}, 1.0, None), Trial({RATE: 0.01}, 0.5, -5.0))  # fmt: skip
    row = make_row(tmp_path, "a", {0: regressed(np.linspace(-1, 1, 20))}, trials=tried)
    axes = Figure().subplots()
    sensitivity._draw_row(axes, row, RATE, -1)
    drawn_as = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert [[0.01, 3], [0.1, 2]] in drawn_as.values()
    assert drawn_as["chosen"] == [[0.1, 2]] and drawn_as["failed"][0][0] == 1.0
    assert drawn_as["tried for a shorter run"] == [[0.01, 5]]


@pytest.mark.slow
def test_figures_are_of_what_there_is(tmp_path, outcome):
    (comparison,) = compare(outcome)
    further = extra_columns([x.row for x in comparison.rows], outcome.metric)
    names = [d.name for d in figures(comparison, further, outcome)]
    assert names == ["cost_trainable", "cost_step_flops", "tuned_0", "shift_0", "shift_2"]
    failed = [make_row(tmp_path, "lost", {}, failed=True, trials=(Trial({}, 1.0, None),))]
    bare = make_outcome(failed)
    assert figures(compare(bare)[0], [], bare) == []
    assert any(p.name == "index.html" for p in write_report(bare, tmp_path / "report"))


def surgical(folder, schemes, policies=("frozen",), sources=("",)):
    rows = [
        make_row(
            folder,
            f"{scheme}, batch_norm={policy}",
            rights(0.4 + 0.1 * i + 0.02 * j, start=10 * i + j),
            overrides={"scheme": scheme, "batch_norm": policy, "data.source": source},
            table=source,
        )
        for source in sources
        for i, scheme in enumerate(schemes)
        for j, policy in enumerate(policies)
        if (scheme, policy) != ("last_k(1)", "track")
    ]
    return make_outcome(rows)


def test_a_map_of_stages_needs_three_schemes_of_a_part(tmp_path):
    for schemes in (
        ["stages('stem')", "last_k(1)", "full", "head"],
        [f"lora(rank={k}) + last_k(1)" for k in (2, 4, 8)],
        ["stages('a') >> full", "last_k(1) >> full", "first_k(1) >> full", "lp_ft"],
    ):
        outcome = surgical(tmp_path, schemes)
        assert stage_map(compare(outcome), outcome) is None


@pytest.mark.slow
def test_a_map_of_stages_is_of_schemes_by_what_else_varies(tmp_path):
    schemes = ["full", "stages('stem')", "first_k(2) + head", "last_k(1)", "norm_only"]
    outcome = surgical(tmp_path, schemes, ("frozen", "track"), ("x/fog", "x/snow"))
    comparisons = compare(outcome)
    found, columns, values = stage_scores(comparisons)
    assert found == schemes[:-1]
    assert columns == [f"{source}, batch_norm={policy}" for source in ("fog", "snow")
                       for policy in ("frozen", "track")]  # fmt: skip
    by_name = {x.row.spec.name: x.score.value for c in comparisons for x in c.rows}
    assert values[1, 2] == by_name["x/snow: stages('stem'), batch_norm=frozen"]
    assert np.isnan(values).sum() == 2 and np.isnan(values[3, [1, 3]]).all()
    drawing = stage_map(comparisons, outcome)
    assert drawing.name == "stages" and drawing.png.startswith(b"\x89PNG")
