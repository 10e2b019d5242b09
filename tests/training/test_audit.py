import jax
import numpy as np
import optax
import pytest

from finetune_jax import tree
from finetune_jax.ending import report
from finetune_jax.models import build, initialise
from finetune_jax.schemes import resolve
from finetune_jax.training.audit import AuditError, audit, snapshot
from finetune_jax.training.checkpoints import Checkpoints
from finetune_jax.training.optimizer import reached


@pytest.fixture
def trained():
    """(plan, snapshot, variables in which every leaf that may change has changed)."""
    model = build("resnet8_cifar", 5, image_size=32)
    variables = jax.tree.map(np.asarray, initialise(model, 32, jax.random.key(0)))
    plan = resolve("last_k(1)", model.stages, variables["params"], variables["batch_stats"])
    free = {f"params/{p}" for p in plan.trainable}
    free |= {f"batch_stats/{p}" for p in plan.tracked_statistics}
    after = tree.map_with_path(lambda p, x: x + 1 if p in free else x, variables)
    return plan, snapshot(variables), after


def change(variables, path, value):
    return tree.map_with_path(lambda p, x: value(x) if p == path else x, variables)


def test_a_run_without_violations_passes_and_is_counted(trained):
    plan, before, after = trained
    counts = audit(plan, before, after)
    assert counts["moved_leaves"] == len(plan.trainable)
    assert counts["frozen_leaves"] == len(plan.leaves) - len(plan.trainable)
    assert counts["frozen_statistics"] == len(plan.statistics) - len(plan.tracked_statistics)


def test_a_frozen_leaf_that_moved_by_one_bit_is_named(trained):
    plan, before, after = trained
    broken = change(after, "params/stem/conv/kernel", lambda x: np.nextafter(x, np.float32(9)))
    with pytest.raises(AuditError, match="frozen leaves changed: params/stem/conv/kernel"):
        audit(plan, before, broken)


def test_a_failed_audit_ends_a_command_with_its_own_sentence(trained, capsys):
    plan, before, after = trained
    broken = change(after, "params/stem/conv/kernel", lambda x: x + 1)
    with pytest.raises(AuditError) as found:
        audit(plan, before, broken)
    assert report(found.value) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: frozen audit failed: 1 frozen leaves changed: params/stem/conv")
    assert line.endswith("report it with config.json of the run.")


def test_checkpoints_that_cannot_be_closed_do_not_hide_why_a_run_ends(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, ())

    def fails():
        raise ValueError("a write was given up")

    monkeypatch.setattr(checkpoints, "close", fails)
    with pytest.raises(AuditError) as found, checkpoints:
        raise AuditError("frozen audit failed")
    assert found.value.__notes__ == ["closing the checkpoints: ValueError: a write was given up"]
    with pytest.raises(ValueError, match="given up"), checkpoints:
        pass


def test_a_frozen_statistic_that_leaked_is_named(trained):
    plan, before, after = trained
    broken = change(after, "batch_stats/stem/norm/mean", lambda x: x + 1e-3)
    with pytest.raises(AuditError, match="batch_stats/stem/norm/mean"):
        audit(plan, before, broken)


def test_a_leaf_with_updates_below_its_last_bit_is_no_error_but_a_leaf_without_gradient_is(
    trained, capsys
):
    plan, before, after = trained
    still = change(after, "params/head/bias", lambda x: x - 1)
    counts = audit(plan, before, still, reached=lambda: {"head/bias"})
    assert counts["unmoved_leaves"] == 1
    assert counts["moved_leaves"] == len(plan.trainable) - 1
    assert "1 trainable leaves did not change: params/head/bias" in capsys.readouterr().err
    # A frozen leaf that changed is an error in every case.
    broken = change(still, "params/stem/conv/kernel", lambda x: x + 1)
    with pytest.raises(AuditError, match="frozen leaves changed.*did not move"):
        audit(plan, before, broken, reached=lambda: {"head/bias"}, steps=1)


def test_random_places_at_units_that_never_fire_are_counted(capsys):
    model = build("resnet8_cifar", 5, image_size=32)
    variables = jax.tree.map(np.asarray, initialise(model, 32, jax.random.key(0)))
    scheme = "random_mask('norm_only')"
    plan = resolve(scheme, model.stages, variables["params"], variables["batch_stats"])
    params = jax.tree.map(np.asarray, plan.add_deltas(variables["params"], jax.random.key(1)))
    before = snapshot({**variables, "params": params})
    free = {f"params/{p}" for p in plan.trainable}
    sparse = next(p for p in sorted(free) if "sparse" in p)

    def moved(*still):
        return tree.map_with_path(
            lambda p, x: x + 1 if p in free and p not in still else x,
            {**variables, "params": params},
        )

    assert audit(plan, before, moved(sparse))["unmoved_leaves"] == 1
    assert f"did not change: {sparse}" in capsys.readouterr().err
    with pytest.raises(AuditError, match="1 trainable leaves did not move: params/head/bias"):
        audit(plan, before, moved(sparse, "params/head/bias"))


def test_a_phase_too_short_to_move_everything_is_not_refused(trained):
    plan, before, after = trained
    still = change(after, "params/head/bias", lambda x: x - 1)
    assert audit(plan, before, still, steps=3)["unmoved_leaves"] == 1
    with pytest.raises(AuditError, match="did not move"):
        audit(plan, before, still, steps=4)


def test_moments_tell_which_leaves_a_gradient_reached():
    params = {"a": {"kernel": jax.numpy.ones(2)}, "b": {"kernel": jax.numpy.ones(2)}}
    for moments in (optax.trace(0.9), optax.scale_by_adam()):
        tx = optax.multi_transform(
            {"one": moments}, {"a": {"kernel": "one"}, "b": {"kernel": "one"}}
        )
        gradients = {"a": {"kernel": jax.numpy.zeros(2)}, "b": {"kernel": jax.numpy.full(2, 1e-30)}}
        _, state = tx.update(gradients, tx.init(params), params)
        assert reached(state) == {"b/kernel"}


def test_a_trainable_leaf_that_stood_still_is_named(trained):
    plan, before, after = trained
    broken = change(after, "params/head/bias", lambda x: x - 1)
    with pytest.raises(AuditError, match="did not move: params/head/bias"):
        audit(plan, before, broken)
