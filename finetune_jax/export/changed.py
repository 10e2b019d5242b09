"""The leaves of a base that a run may have changed, as its plans say."""

from __future__ import annotations

from finetune_jax import tree
from finetune_jax.export.formats import Model
from finetune_jax.schemes.phases import resolve_phases
from finetune_jax.schemes.plan import FROZEN


def changed_leaves(model: Model) -> set[str]:
    """Paths, with their collection, of leaves that are not those of the base; without deltas.

    Phases of the run's scheme are resolved again, because the artifact has the last plan alone. An
    artifact without the config of its run has changed what its plan trains.
    """
    artifact, config = model.artifact, model.config
    plan = artifact.card["plan"]
    leaves = tree.flatten(artifact.variables)
    statistics = {p for p in leaves if p.startswith("batch_stats/")}
    # A head of the base's size may have been loaded and kept, so it counts as changed.
    changed = {p for p in leaves if p.startswith("params/head/")}
    changed |= {
        f"params/{leaf['path']}" for leaf in plan.get("leaves", ()) if leaf["group"] != FROZEN
    }
    tracked = {*plan.get("tracked", ())}
    changed |= {*artifact.card["base"].get("adapter", {}).get("leaves", ())}
    if plan.get("batch_norm") == "reestimate":
        return (changed | statistics) & leaves.keys() - _added(model)
    if config and (artifact.model.deltas or not config.get("pretrained", {}).get("adapter")):
        flat = {p.removeprefix("params/"): x for p, x in leaves.items() if p.startswith("params/")}
        own = {p: x for p, x in flat.items() if f"params/{p}" not in _added(model)}
        model_ = artifact.model.model
        for phase in resolve_phases(
            config["scheme"], model_.stages, tree.unflatten(own),
            artifact.variables["batch_stats"], batch_norm=config.get("batch_norm", "frozen"),
            deltas=artifact.model.deltas,
        ):  # fmt: skip
            changed |= {f"params/{path}" for path in phase.plan.trainable}
            tracked |= {*phase.plan.tracked}
    changed |= {p for p in statistics if p.split("/")[1] in tracked}
    return (changed & leaves.keys()) - _added(model)


def _added(model: Model) -> set[str]:
    leaves = tree.flatten(model.artifact.variables["params"])
    return {f"params/{p}" for d in model.artifact.model.deltas for p in d.leaves(leaves)}
