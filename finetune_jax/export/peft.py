"""The adapter folder of peft: LoRA or IA3 over the same base in transformers or timm.

``adapter_config.json`` and ``adapter_model.safetensors``. What changed beside the deltas, such as
the head, is in ``modules_to_save``. The names are those of the modules of transformers 5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune_jax import tree
from finetune_jax.data.text import TextPreprocess
from finetune_jax.deltas import IA3, Delta, LoRA
from finetune_jax.errors import UserError
from finetune_jax.export.changed import changed_leaves
from finetune_jax.export.formats import Batch, Model, Outputs
from finetune_jax.export.host import on_prepared
from finetune_jax.export.hub import Destination, destination
from finetune_jax.export.hub.destination import family_of
from finetune_jax.files import write_json
from finetune_jax.pretrained import map_of
from finetune_jax.pretrained.adapter import CONFIG, PREFIX, WEIGHTS, read_adapter
from finetune_jax.pretrained.formats.safetensors_file import write_safetensors
from finetune_jax.pretrained.names import COUNTER, NameMap, Target
from finetune_jax.quantization import quantized_leaves

MERGES, KEEPS_DELTAS = False, True


def require(model: Model) -> None:
    """Checks that peft expresses the deltas and that a class has the base.

    Raises:
      UserError: no deltas, deltas of a kind that peft does not have or of several kinds, a base in
        few bits, or a model that neither timm nor transformers has.
    """
    deltas = model.artifact.model.deltas
    if not deltas:
        raise UserError(
            f"--format=peft: the model has no deltas (scheme "
            f"{model.artifact.card['plan']['scheme']!r}); --format=safetensors writes all weights"
        )
    unknown = sorted({d.kind for d in deltas if type(d) not in (LoRA, IA3)})
    if unknown:
        raise UserError(
            f"--format=peft: peft has no adapter that computes {', '.join(unknown)}; it has lora "
            f"(with rslora, dora and pissa) and ia3. --format=safetensors writes merged weights"
        )
    kinds = {(d.kind, getattr(d, "dora", False)) for d in deltas}
    if len(kinds) > 1:
        raise UserError("--format=peft: an adapter is of one kind; the scheme mixes several")
    if quantized_leaves(model.artifact.variables["params"]):
        raise UserError(
            "--format=peft: the deltas were trained over weights in few bits, and peft would put "
            "them beside the weights in float32; --format=safetensors writes merged weights"
        )
    where = destination(model)
    if where.library not in ("timm", "transformers"):
        raise UserError(
            f"--format=peft: no class of timm or transformers has this head, so an adapter has no "
            f"place for it ({where.library or 'no library'} opens the model); "
            f"--format=safetensors writes merged weights"
        )
    _adapter(model, where)


def write(model: Model, folder: Path) -> None:
    """Writes the two files of the adapter; errors as `require`."""
    where = destination(model)
    config, tensors = _adapter(model, where)
    base = model.artifact.card["base"]
    note = {"format": "pt", **({"base_sha256": base["sha256"]} if base.get("sha256") else {})}
    ready = {f"{PREFIX}{name}": np.asarray(x, order="C") for name, x in tensors.items()}
    write_safetensors(folder / WEIGHTS[0], ready, note)
    write_json(folder / CONFIG, config)


def opened(model: Model, folder: Path) -> Outputs:
    """The outputs with what the files hold, over the base alone.

    Leaves that the adapter must hold are zeros before it is read.
    """
    artifact = model.artifact
    module = artifact.model.model
    changed, leaves = changed_leaves(model), tree.flatten(artifact.variables)
    added = {f"params/{p}" for d in artifact.model.deltas for p in d.leaves(_params(leaves))}
    base = {
        path: np.zeros_like(x) if path in changed else np.asarray(x)
        for path, x in leaves.items() if path not in added
    }  # fmt: skip
    adapter = read_adapter(folder, family_of(model), base, module.sizes)
    filled = tree.unflatten({**base, **adapter.values(base)})
    variables = {"params": filled["params"], "batch_stats": filled.get("batch_stats", {})}
    adapted = dataclasses.replace(artifact.model, deltas=adapter.deltas)
    apply = jax.jit(adapted.apply)

    def outputs(batch: Batch) -> np.ndarray:
        return np.asarray(apply(variables, artifact.preprocess.device(batch)))

    return on_prepared(artifact, outputs)


def library(model: Model) -> str:
    """The library that reads the folder."""
    del model
    return "peft"


def usage(model: Model) -> str:
    """Code that puts the adapter onto the base."""
    where, artifact = destination(model), model.artifact
    classes = artifact.task.head_size
    if where.library == "timm":
        opens = f"timm.create_model('{where.opener}', pretrained=True, num_classes={classes})"
        return (
            f"import peft, timm\n\nbase = {opens}\n"
            "model = peft.PeftModel.from_pretrained(base, FOLDER).eval()"
        )
    return (
        f"import peft\nfrom transformers import {where.opener}\n\n"
        f"base = {where.opener}.from_pretrained(BASE, num_labels={classes},\n"
        "                                        ignore_mismatched_sizes=True)\n"
        "model = peft.PeftModel.from_pretrained(base, FOLDER).eval()"
    )


def _params(leaves: Mapping[str, Any]) -> dict[str, Any]:
    return {p.removeprefix("params/"): x for p, x in leaves.items() if p.startswith("params/")}


def _names(model: Model, where: Destination) -> NameMap:
    """The name map whose first rules have the names of the modules."""
    name_map = map_of(family_of(model), where.origin)
    if where.library == "transformers" and family_of(model) == "vit":
        # The names of version 4, which files have, come first in the table.
        return dataclasses.replace(name_map, rules=name_map.rules[::-1])
    return name_map


def _adapter(model: Model, where: Destination) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(content of the configuration, tensors by name)."""
    artifact, names = model.artifact, _names(model, where)
    leaves = {p: np.asarray(x) for p, x in tree.flatten(artifact.variables).items()}
    groups: dict[str, list[tuple[Target, Delta]]] = {}
    for delta in artifact.model.deltas:
        found = names.place(f"params/{delta.module}/kernel")
        if found is None:
            raise UserError(f"--format=peft: {delta.module!r} is no module of {where.library}")
        groups.setdefault(found[0].removesuffix(".weight"), []).append((found[1], delta))
    dora = any(getattr(d, "dora", False) for d in artifact.model.deltas)
    config: dict[str, Any] = {
        "base_model_name_or_path": _base_name(model),
        "inference_mode": True,
        "task_type": "SEQ_CLS" if isinstance(artifact.preprocess, TextPreprocess) else None,
        "target_modules": sorted(groups),
    }
    tensors: dict[str, np.ndarray] = {}
    if isinstance(artifact.model.deltas[0], IA3):
        config |= {"peft_type": "IA3", "feedforward_modules": _scales(groups, leaves, tensors)}
    else:
        config |= {"peft_type": "LORA", "use_dora": dora, "lora_dropout": 0.0,
                   "init_lora_weights": True, "fan_in_fan_out": False,
                   **_factors(groups, leaves, tensors)}  # fmt: skip
    saved, biases = _saved(model, names, groups, leaves, tensors)
    config |= {"modules_to_save": saved or None}
    if biases:
        if config["peft_type"] == "IA3":
            raise UserError(
                f"--format=peft: IA3 has no place for the trained bias of {biases[0]!r}"
            )
        config["bias"] = "all"
    return config, tensors


def _factors(
    groups: Mapping[str, list[tuple[Target, Delta]]],
    leaves: Mapping[str, np.ndarray],
    tensors: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Adds the tensors of LoRA; returns ranks and scales.

    A module of torch that holds several of our modules gets the factors of all: those of B are
    blocks below each other and beside each other. PiSSA's start values are subtracted by factors of
    their own, because the base keeps its weights.
    """
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    plain = True
    for module, members in groups.items():
        downs, ups = [], []
        count = members[0][0].part[1]
        first = members[0][1]
        assert isinstance(first, LoRA)
        kernel = leaves[members[0][0].leaf]
        outputs = kernel.shape[-1]
        for target, delta in members:
            assert isinstance(delta, LoRA)
            a, b = (leaves[f"params/{delta.path(end)}"] for end in "ab")
            pairs = [(a, b)]
            if delta.pissa:
                a0, b0 = (leaves[f"params/{delta.path(end)}"] for end in ("a0", "b0"))
                pairs.append((a0, -b0))
            for down, up in pairs:
                block = np.zeros((up.shape[0], count * outputs), np.float32)
                start = target.part[0] * outputs
                block[:, start : start + outputs] = up * (delta.scale / first.scale)
                downs.append(down)
                ups.append(block)
            plain &= delta.rslora and not delta.pissa and count == 1
        down, up = np.concatenate(downs, axis=-1), np.concatenate(ups)
        rank = up.shape[0]
        turned = members[0][0].layout.inverse(down)
        tensors[f"{module}.lora_A.weight"] = turned
        wide = up.T.reshape(count * outputs, rank, *[1] * (turned.ndim - 2))
        tensors[f"{module}.lora_B.weight"] = wide
        ranks[module], alphas[module] = rank, first.scale * rank
        if first.dora:
            tensors[f"{module}.lora_magnitude_vector"] = _lengths(members, leaves, outputs)
    if plain:  # rsLoRA divides by the root of the rank
        alphas = {m: alpha / ranks[m] ** 0.5 for m, alpha in alphas.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": plain,
        "rank_pattern": {m: r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {m: a for m, a in alphas.items() if a != alpha},
        "bias": "none",
    }


def _lengths(
    members: list[tuple[Target, Delta]], leaves: Mapping[str, np.ndarray], outputs: int
) -> np.ndarray:
    """DoRA's lengths of all outputs of a module of torch; those without a delta keep theirs."""
    count = members[0][0].part[1]
    module = members[0][1].module
    siblings = {target.part[0]: delta for target, delta in members}
    lengths = np.zeros((count, outputs), np.float32)
    for index in range(count):
        if index in siblings:
            own = siblings[index].module
            shift = leaves[f"params/{siblings[index].path('shift')}"]
        else:
            own = f"{module.rsplit('/', 1)[0]}/{('query', 'key', 'value')[index]}"
            shift = np.zeros(outputs, np.float32)
        kernel = leaves[f"params/{own}/kernel"].astype(np.float32)
        lengths[index] = np.sqrt(np.sum(kernel**2, axis=0)) + shift
    return lengths.reshape(-1)


def _scales(
    groups: Mapping[str, list[tuple[Target, Delta]]],
    leaves: Mapping[str, np.ndarray],
    tensors: dict[str, np.ndarray],
) -> list[str]:
    """Adds the tensors of IA3; returns the modules whose inputs are scaled."""
    inputs = []
    for module, members in groups.items():
        target, first = members[0]
        assert isinstance(first, IA3)
        count = target.part[1]
        if first.inputs and count > 1:
            raise UserError(
                f"--format=peft: IA3 on the inputs of {first.module!r} scales those of all of "
                f"{module!r} in peft"
            )
        kernel = leaves[target.leaf]
        axes = target.layout.inverse(kernel).ndim - 2
        if first.inputs:
            inputs.append(module)
            scale = leaves[f"params/{first.path('scale')}"]
            tensors[f"{module}.ia3_l"] = scale.reshape(1, -1, *[1] * axes)
            continue
        scale = np.ones((count, kernel.shape[-1]), np.float32)
        for place, delta in members:
            scale[place.part[0]] = leaves[f"params/{delta.path('scale')}"]
        shape = (1, -1, *[1] * axes) if axes else (-1, 1)
        tensors[f"{module}.ia3_l"] = scale.reshape(shape)
    return sorted(inputs)


def _saved(
    model: Model,
    names: NameMap,
    groups: Mapping[str, Any],
    leaves: Mapping[str, np.ndarray],
    tensors: dict[str, np.ndarray],
) -> tuple[list[str], list[str]]:
    """Adds the tensors of changed modules; returns (modules to save, biases beside deltas)."""
    module = model.artifact.model.model
    added = {p for d in model.artifact.model.deltas for p in d.leaves(_params(leaves))}
    base = {p: x for p, x in leaves.items() if p.removeprefix("params/") not in added}
    written = names.write(base, module.sizes)
    if COUNTER in names.ignore:
        norms = [n.removesuffix("running_mean") for n in written if n.endswith(".running_mean")]
        written |= {f"{norm}num_batches_tracked": np.zeros((), np.int64) for norm in norms}
    modules: set[str] = set()
    biases = []
    for leaf in sorted(changed_leaves(model)):
        place = names.place(leaf)
        if place is None:
            continue  # a constant, which `write` has checked
        owner, _, kind = place[0].rpartition(".")
        if not owner:
            raise UserError(
                f"--format=peft: {leaf} has changed, and {place[0]!r} belongs to no module that "
                f"peft could save; --format=safetensors writes merged weights"
            )
        if owner in groups and kind == "bias":
            tensors[f"{owner}.base_layer.bias"] = written[place[0]]
            biases.append(owner)
        elif owner in groups:
            raise UserError(
                f"--format=peft: {leaf} has changed under a delta, and peft keeps one of the two; "
                f"--format=safetensors writes merged weights"
            )
        else:
            modules.add(owner)
    outer = {m for m in modules if not any(m.startswith(f"{other}.") for other in modules)}
    for name, array in written.items():
        if any(name.startswith(f"{owner}.") for owner in outer):
            tensors[name] = array
    inside = [m for m in groups if any(m.startswith(f"{owner}.") for owner in outer)]
    if inside:
        raise UserError(
            f"--format=peft: {inside[0]!r} has a delta, and the module around it has changed; "
            f"--format=safetensors writes merged weights"
        )
    return sorted(outer), biases


def _base_name(model: Model) -> str | None:
    """The repository of the base, where the run took it from the hub."""
    source = str(model.config.get("pretrained", {}).get("path", ""))
    return source.removeprefix("hf:").partition("@")[0] if source.startswith("hf:") else None
