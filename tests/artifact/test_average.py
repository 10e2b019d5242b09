"""Averages: exact end points, shared leaves untouched, statistics recomputed, greedy soups."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
from commands import run_command
from hypothesis import given

from finetune_jax import tree
from finetune_jax.artifact import Artifact
from finetune_jax.artifact.averaging import average, differing, greedy, uniform
from finetune_jax.config import default
from finetune_jax.errors import UserError
from finetune_jax.evaluation.averaging import combine
from finetune_jax.setup import open_setup
from finetune_jax.training.loop import train

arrays = st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3).map(
    lambda x: np.array(x, np.float32)
)
members = st.fixed_dictionaries({"stem": st.fixed_dictionaries({"kernel": arrays})})


@given(members, members)
def test_end_points_are_exact_and_identical_leaves_are_never_rounded(a, b):
    for weights, expected in (([1.0, 0.0], a), ([0.0, 1.0], b)):
        found = average([a, b], weights)["stem"]["kernel"]
        assert found.tobytes() == expected["stem"]["kernel"].tobytes()
    same = average([a, a, a], uniform(3))["stem"]["kernel"]
    assert same.tobytes() == a["stem"]["kernel"].tobytes()
    assert not differing([a, a])
    middle = average([a, b], [0.3, 0.7])["stem"]["kernel"]
    exact = 0.3 * np.float64(a["stem"]["kernel"]) + 0.7 * np.float64(b["stem"]["kernel"])
    np.testing.assert_allclose(middle, exact, rtol=1e-6, atol=1e-30)


def test_other_shapes_are_refused_by_name():
    a, b = {"head": {"bias": np.zeros(3)}}, {"head": {"bias": np.zeros(4)}}
    with pytest.raises(UserError, match=r"differ at head/bias: \(3,\) and \(4,\)"):
        average([a, b], uniform(2))


def test_greedy_soup_keeps_what_does_not_hurt():
    # The score is closeness to 1; members at 0.8, 1.3, 5.
    soup = [{"w": {"x": np.array([v], np.float64)}} for v in (5.0, 0.8, 1.3)]
    value = lambda m: -abs(float(m["w"]["x"][0]) - 1)  # noqa: E731
    kept, final, best = greedy(soup, [value(m) for m in soup], lambda m: (value(m), m))
    assert kept == [1, 2]
    assert final["w"]["x"][0] == pytest.approx(1.05)
    assert best == pytest.approx(-0.05)


@pytest.fixture(scope="module")
def runs(weights, tmp_path_factory):
    """Three runs from one base: two of the last stage, one of them a delta artifact, and LoRA."""
    folder = tmp_path_factory.mktemp("members")
    settings = {"a": ("last_k(1)", 0), "b": ("last_k(1)", 1), "c": ("lora(rank=2) + head", 0)}
    for name, (scheme, seed) in settings.items():
        config = default()
        config.model.name = "resnet8_cifar"
        config.scheme, config.seed = scheme, seed
        config.pretrained.path = str(weights)
        config.pretrained.new_head = True
        config.data.train, config.data.validation = "train[:32]", "validation[:32]"
        config.data.test = "test[:32]"
        config.data.image_size = 16
        config.train.batch_size, config.train.steps = 16, 4
        config.eval.batch_size = 16
        config.log.tensorboard = False
        config.artifact.contents = "delta" if name == "b" else "all"
        train(open_setup(config), folder / name)
    return folder


def variables_of(folder, base=""):
    return tree.flatten(Artifact.load(folder, base).variables)


@pytest.mark.slow
def test_interpolation_scores_the_end_points_as_the_members(runs, weights, tmp_path):
    with pytest.raises(UserError, match="give that file with --base"):
        combine([runs / "a", runs / "b"], tmp_path / "out")
    process = run_command(
        "average",
        f"--members={runs / 'a'},{runs / 'b'}",
        f"--output={tmp_path / 'out'}",
        "--alphas=0,0.5,1",
        f"--base={weights}",
    )
    assert process.returncode == 0, process.stderr
    report = json.loads((tmp_path / "out" / "average.json").read_text())
    for row, name in ((report["rows"][0], "a"), (report["rows"][2], "b")):
        alone = json.loads((runs / name / "result.json").read_text())["validation"]
        assert row["accuracy"] == alone["accuracy"]
        assert row["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert (tmp_path / "out" / "average.png").stat().st_size > 1000
    assert report["scores"]["test"]["n_scored"] == 32


def test_a_soup_changes_only_what_its_members_trained(runs, weights, tmp_path):
    base = str(weights)
    report = combine(
        [runs / "a", runs / "b"], tmp_path / "out", "uniform", statistics_batches=2, base=base
    )
    a, b, soup = (variables_of(f, base) for f in (runs / "a", runs / "b", tmp_path / "out"))
    for path, value in soup.items():
        same = np.array_equal(a[path], b[path])
        assert same == (path.split("/")[1] not in ("layer3_block0", "head")), path
        if same:
            assert np.array_equal(value, a[path]), path
        elif path.startswith("params"):
            np.testing.assert_allclose(value, (a[path] + b[path]) / 2, rtol=1e-6)
        else:
            # Recomputed: not the mean of the members' statistics.
            assert not np.allclose(value, (a[path] + b[path]) / 2, rtol=1e-4), path
    assert report["statistics"] == ["layer3_block0"]


def test_a_soup_across_schemes_folds_deltas_first(runs, tmp_path):
    combine([runs / "a", runs / "c"], tmp_path / "out", "greedy", statistics_batches=2)
    assert not any("lora" in p for p in variables_of(tmp_path / "out"))


def test_members_that_do_not_go_together_are_refused(runs, tmp_path):
    with pytest.raises(UserError, match="interpolate needs two, found 3"):
        combine([runs / n for n in "abc"], tmp_path / "out")
    with pytest.raises(UserError, match="in .0, 1."):
        combine([runs / "a", runs / "b"], tmp_path / "out", alphas=[2.0])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(UserError, match="is not empty"):
        combine([runs / "a", runs / "b"], tmp_path / "full")
    assert not (tmp_path / "out").exists()
