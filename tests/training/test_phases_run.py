"""Phases in a run: values that survive a boundary, caches without effect, exact resumption."""

import json
import shutil

import jax
import numpy as np
import pytest
from small_runs import config_of, losses, same_end, tensors

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.setup import open_setup
from finetune_jax.training.checkpoints import Checkpoints
from finetune_jax.training.loop import train
from finetune_jax.training.phase import PhaseRun

slow = pytest.mark.slow
PHASES = "head + phase(steps=2) >> last_k(1) + lora(rank=2) >> norm + phase(steps=2)"


class Stop(Exception):
    """Stands for a power cut."""


def run_until(config, folder, stop, monkeypatch):
    """Runs until the checkpoint of step `stop` is complete."""
    original = Checkpoints.save

    def save(self, state, *rest):
        original(self, state, *rest)
        if int(state.step) == stop:
            self.wait()
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(Stop):
            train(open_setup(config), folder)


@pytest.mark.slow
def test_a_run_stopped_on_either_side_of_a_boundary_resumes_to_the_same_bits(
    weights, tmp_path, monkeypatch
):
    config = config_of(weights, PHASES, optimizer__name="adamw", optimizer__learning_rate=1e-3)
    result = train(open_setup(config), tmp_path / "whole")
    assert [p["steps"] for p in result["phases"]] == [2, 2, 2]
    for stop in (1, 2, 3, 5):
        halved = tmp_path / f"halved_{stop}"
        run_until(config, halved, stop, monkeypatch)
        again = train(open_setup(config), halved)
        assert again["phases"] == result["phases"], stop
        same_end(tmp_path / "whole", halved)


@pytest.mark.parametrize(
    ("scheme", "stop", "changes"),
    [
        # With a cached prefix, and less than an epoch left to train.
        pytest.param("last_k(1)", 5, {}, marks=slow),
        pytest.param(
            "head", 5, {"data__augment": "flip", "prefix_cache__views": 2}, marks=slow
        ),
        pytest.param("head + phase(solve='ridge') >> last_k(1)", 3, {}, marks=slow),
        pytest.param("head + phase(steps=2) >> last_k(1) + phase(reset=True)", 3,
                     {"optimizer__ema_decay": 0.9}, marks=slow),
        pytest.param("auto_rgn(batches=2)", 3, {}, marks=slow),
        pytest.param(
            "head + phase(steps=2, optimizer='adamw') >> last_k(1)", 3, {}, marks=slow
        ),
        pytest.param("lora(rank=2) + head + phase(steps=2) >> head + norm", 4,
                     {"model__frozen_dtype": "nf4"}, marks=slow),
        pytest.param("last_k(1) + phase(steps=2) >> last_k(1) + phase(quantize='int4')", 4,
                     {}, marks=slow),
    ],
    ids=[
        "cache", "views", "solve", "reset-ema", "measured", "optimizers", "quantized", "aware",
    ],
)  # fmt: skip
def test_every_kind_of_phase_resumes_to_the_same_bits(
    weights, tmp_path, monkeypatch, scheme, stop, changes
):
    config = config_of(weights, scheme, optimizer__learning_rate=1e-3, **changes)
    train(open_setup(config), tmp_path / "whole")
    run_until(config, tmp_path / "halved", stop, monkeypatch)
    train(open_setup(config), tmp_path / "halved")
    same_end(tmp_path / "whole", tmp_path / "halved")


def test_the_best_checkpoint_kept_is_of_the_last_phase(weights, tmp_path):
    """Even when an earlier phase scored higher: its weights are no result of the whole scheme."""
    config = config_of(
        weights, "head + phase(steps=4, lr=1.0) >> last_k(1) + phase(steps=3, lr=300.0)",
        artifact__select="best", eval__every_epochs=0.5,
    )  # fmt: skip
    result = train(open_setup(config), tmp_path / "run")
    assert result["selected_step"] in (5, 6, 7)
    rows = [json.loads(r) for r in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = {r["step"]: r["accuracy"] for r in rows if r["split"] == "validation"}
    last = {step: score for step, score in scores.items() if step > 4}
    assert scores[result["selected_step"]] == max(last.values())


def test_a_phase_has_its_own_optimizer_clip_and_decay(weights):
    scheme = "head + phase(steps=2, optimizer='adamw', decay=0.5, clip=0.1) >> last_k(1)"
    setup = open_setup(config_of(weights, scheme, optimizer__clip_norm=3.0))
    first, second = PhaseRun(setup, 0, 0, 2), PhaseRun(setup, 1, 2, 4)
    assert (first.optimizer.settings.name, first.optimizer.settings.clip_norm) == ("adamw", 0.1)
    assert float(first.optimizer.hyper()["weight_decay"]) == 0.5
    assert (second.optimizer.settings.name, second.optimizer.settings.clip_norm) == ("sgd", 3.0)
    assert setup.config.optimizer.name == "sgd"
    # The moments of AdamW and SGD have different names, so none is carried over.
    _, _, new = states_around_a_boundary(weights, scheme, "sgd")
    assert not any(value.any() for value in moments(new).values())


def test_what_a_later_phase_trains_is_never_rounded(weights, tmp_path):
    config = config_of(weights, "head >> last_k(1)", model__frozen_dtype="bfloat16")
    setup = open_setup(config)
    variables = setup.initial_variables()
    _, frozen = PhaseRun(setup, 0, 0, 3).create_state(variables)
    for path, leaf in tree.flatten(frozen.params).items():
        wanted = "float32" if path.startswith("layer3_block0") else "bfloat16"
        assert leaf.dtype == wanted, path


def test_l2_sp_pulls_deltas_to_where_they_started(weights, tmp_path):
    """Under a strong pull and small gradients, scales that start at 1 stay near 1, not near 0."""
    config = config_of(
        weights, "ssf + head", optimizer__l2_sp=0.5, optimizer__l2_sp_head=0.5, train__steps=40,
        optimizer__learning_rate=0.1, optimizer__schedule="constant", optimizer__momentum=0.0,
        eval__every_epochs=20.0, checkpoint__every_steps=40,
    )  # fmt: skip
    train(open_setup(config), tmp_path / "run")
    scales = [x for p, x in tensors(tmp_path / "run").items() if p.endswith("ssf_scale")]
    assert scales and all(np.abs(x - 1).max() < 0.5 for x in scales)


def states_around_a_boundary(weights, scheme, name="adamw"):
    """(phase 1, state at the end of phase 0, state at the start of phase 1)."""
    setup = open_setup(config_of(weights, scheme, optimizer__name=name))
    first, second = PhaseRun(setup, 0, 0, 3), PhaseRun(setup, 1, 3, 3)
    params = setup.initial_variables()
    variables = {**params, "params": second.plan.add_deltas(params["params"], jax.random.key(0))}
    old, _ = first.create_state(params)
    marked = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 3 if "count" in jax.tree_util.keystr(path) else x + 0.5, old.opt_state
    )
    old = jax.tree.map(lambda x: x, old)
    old = type(old)(**{**vars(old), "opt_state": marked})
    new, _ = second.create_state(variables)
    return second, old, second.carry(first, old, new)


def moments(state):
    found = {}
    for path, value in jax.tree_util.tree_leaves_with_path(state.opt_state):
        found[jax.tree_util.keystr(path)] = np.asarray(value)
    return found


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_survivors_keep_their_moments_and_newcomers_start_fresh(weights, name):
    scheme = "last_k(1) >> last_k(2)"
    _, old, new = states_around_a_boundary(weights, scheme, name)
    seen = {"kept": 0, "fresh": 0}
    for path, value in moments(new).items():
        if "count" in path:
            # The survivors, which have done 3 steps, and the newcomers have separate groups.
            assert int(value) == (0 if "@1" in path else 3)
        elif "layer2_block0" in path:
            assert not value.any()
            seen["fresh"] += 1
        else:
            assert (value == 0.5).all()
            seen["kept"] += 1
    assert all(seen.values())
    assert int(old.step) == int(new.step)


def test_the_newly_frozen_lose_their_moments_and_reset_drops_all(weights):
    _, _, new = states_around_a_boundary(weights, "last_k(2) >> head")
    assert not any("layer3" in path for path in moments(new))
    _, _, new = states_around_a_boundary(weights, "last_k(2) >> last_k(2) + phase(reset=True)")
    assert not any(value.any() for value in moments(new).values())


@pytest.mark.parametrize(
    "scheme",
    [
        "head",
        pytest.param("last_k(2)", marks=slow),
        pytest.param("lora(rank=2, on='layer3.*conv.') + head", marks=slow),
    ],
)
def test_cached_prefix_gives_the_losses_of_the_uncached(weights, tmp_path, scheme):
    results = {}
    for enabled in (False, True):
        folder = tmp_path / str(enabled)
        train(open_setup(config_of(weights, scheme, prefix_cache__enabled=enabled)), folder)
        results[enabled] = losses(folder)
    assert len(results[True]) == 6
    np.testing.assert_allclose(results[True], results[False], atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_cache_on_disk_is_shared_bounded_and_safe_from_half_written_files(
    weights, tmp_path, capsys
):
    cache = tmp_path / "cache"
    options = {"prefix_cache__dir": str(cache), "prefix_cache__bytes": 0}
    train(open_setup(config_of(weights, "head", **options)), tmp_path / "first")
    assert "written to" in capsys.readouterr().err
    entries = sorted(cache.iterdir())
    assert len(entries) == 2  # train and validation
    # The folder of a killed run is not taken for an entry.
    (cache / ".half-x").mkdir()
    (cache / ".half-x" / "activations").write_bytes(b"half")
    train(open_setup(config_of(weights, "head", **options)), tmp_path / "second")
    assert "found in" in capsys.readouterr().err
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    # Another resolution has another key; entries beyond the size limit are removed, oldest first.
    size = sum(json.loads((e / "meta.json").read_text())["bytes"] for e in entries)
    small = {**options, "data__image_size": 24, "prefix_cache__dir_bytes": size}
    train(open_setup(config_of(weights, "head", **small)), tmp_path / "third")
    left = [e for e in cache.iterdir() if (e / "meta.json").is_file()]
    assert len(left) == 2 and not set(left) & set(entries)


@pytest.mark.slow
def test_fixed_views_are_cached_and_change_with_the_epoch(weights, tmp_path):
    options = {"data__augment": "flip", "prefix_cache__views": 2, "train__steps": 8}
    train(open_setup(config_of(weights, "head", **options)), tmp_path / "views")
    plain = {**options, "data__augment": ""}
    train(open_setup(config_of(weights, "head", **plain)), tmp_path / "plain")
    assert losses(tmp_path / "views") != losses(tmp_path / "plain")


@pytest.mark.slow
def test_lp_ft_solves_the_head_then_trains_everything(weights, tmp_path):
    result = train(open_setup(config_of(weights, "lp_ft")), tmp_path / "run")
    (report,) = result["probes"]
    assert len(report["path"]) == 19
    best = max(row["accuracy"] for row in report["path"])
    assert report["chosen"]["accuracy"] == best
    assert [p["audit"]["moved_leaves"] for p in result["phases"]] == [2, 23]


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheme",
    ["auto_rgn(batches=2)", pytest.param("auto_snr(batches=2, threshold=0.2)", marks=slow)],
)
def test_measured_rates_run_and_resume(weights, tmp_path, scheme):
    config = config_of(weights, scheme, train__steps=4)
    result = train(open_setup(config), tmp_path / "whole")
    assert result["audit"]["moved_leaves"] >= 1
    shutil.copytree(tmp_path / "whole", tmp_path / "copy")
    for name in ("result.json", "artifact"):
        path = tmp_path / "copy" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(open_setup(config), tmp_path / "copy")
    for name, value in tensors(tmp_path / "whole").items():
        assert np.array_equal(value, tensors(tmp_path / "copy")[name]), name


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"optimizer__sam_rho": 0.05}, marks=slow),
        pytest.param({"optimizer__l2_sp": 0.1, "optimizer__l2_sp_head": 0.1}, marks=slow),
        {"optimizer__ema_decay": 0.9, "train__accumulate": 2},
        {"batch_norm": "reestimate"},
        pytest.param({"model__dtype": "bfloat16", "model__frozen_dtype": "bfloat16"}, marks=slow),
    ],
    ids=lambda c: next(iter(c)),
)
def test_options_run_under_the_audit(weights, tmp_path, changes):
    result = train(open_setup(config_of(weights, "last_k(1)", **changes)), tmp_path / "run")
    assert result["audit"]["moved_leaves"] == 8
    assert np.isfinite(losses(tmp_path / "run")).all()


def test_a_frozen_random_head_is_refused(weights):
    from finetune_jax.base_variables import load_variables

    with pytest.raises(UserError, match="add ' . head' to train these leaves"):
        load_variables(open_setup(config_of(weights, "lora(rank=2)")))


def test_artifact_of_deltas_predicts_like_the_run(weights, tmp_path):
    from finetune_jax.artifact import Artifact

    train(open_setup(config_of(weights, "lora(rank=2) + head")), tmp_path / "run")
    artifact = Artifact.load(tmp_path / "run")
    assert any("lora_a" in p for p in tree.flatten(artifact.variables))
    assert artifact.outputs({"image": np.zeros((2, 16, 16, 3), np.uint8)}).shape == (2, 10)
