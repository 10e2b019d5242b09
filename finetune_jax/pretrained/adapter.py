"""Adapters of peft: LoRA and IA3 beside the modules of timm and transformers, as our deltas.

The folder of an adapter has ``adapter_config.json`` and ``adapter_model.safetensors``. A module of
torch that holds several of ours, such as timm's ``qkv``, gives a delta to each of them. Other
tensors in the file, such as those of a new head, take the place of leaves of the base.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune_jax.deltas import IA3, Delta, LoRA
from finetune_jax.errors import UserError
from finetune_jax.files import file_digest, read_json
from finetune_jax.pretrained.formats import open_weights
from finetune_jax.pretrained.maps import maps_of
from finetune_jax.pretrained.names import NameMap, Target
from finetune_jax.pretrained.sources import companion_folder

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."

# Ways to draw the first factors that leave the base as it is; the others change it.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_LEFT_EMPTY = (
    "fan_in_fan_out", "layer_replication", "lora_bias", "target_parameters",
    "trainable_token_indices", "use_qalora", "alora_invocation_tokens", "arrow_config",
    "megatron_config", "use_bdlora", "monteclora_config",
)  # fmt: skip
_PART = re.compile(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector|ia3_l)(?:\.weight)?")


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """The content of an adapter's folder, in our names.

    Attributes:
      deltas: the deltas, in the order of the file.
      leaves: values by path: leaves of the deltas, but for DoRA's shifts, and leaves that take the
        place of those of the base. Paths begin with ``params/`` or ``batch_stats/``.
      lengths: by module of a DoRA delta, the lengths f32[out] of the columns of its kernel.
      file: name of the file of weights.
      sha256: digest of the file of weights.
    """

    deltas: tuple[Delta, ...]
    leaves: Mapping[str, np.ndarray]
    lengths: Mapping[str, np.ndarray]
    file: str
    sha256: str

    def values(self, kernels: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """All leaves, with DoRA's shifts, which depend on the base.

        Args:
          kernels: ``{"params/<module>/kernel": f32[in, out]}`` of the base, for all `lengths`.
        """
        found = dict(self.leaves)
        for module, length in self.lengths.items():
            kernel = np.asarray(kernels[f"params/{module}/kernel"], np.float32)
            norm = np.sqrt(np.sum(kernel**2, axis=0))
            found[f"params/{module}/lora_shift"] = length.astype(np.float32) - norm
        return found


def open_adapter(
    source: str, family: str, leaves: Mapping[str, Any], sizes: Mapping[str, int] | None = None
) -> Adapter | None:
    """The adapter of ``pretrained.adapter``; None for an empty source.

    Args:
      source: a folder, or ``hf:OWNER/NAME``.
      family, leaves, sizes: as of `read_adapter`.

    Raises:
      UserError: as `read_adapter`.
    """
    if not source:
        return None
    folder = companion_folder(source, (CONFIG, *WEIGHTS), fetch=True)
    if folder is None or not folder.is_dir():
        raise UserError(
            f"pretrained.adapter={source!r}: expected a folder with {CONFIG}, or hf:OWNER/NAME"
        )
    return read_adapter(folder, family, leaves, sizes)


def read_adapter(
    folder: Path, family: str, leaves: Mapping[str, Any], sizes: Mapping[str, int] | None = None
) -> Adapter:
    """Reads an adapter for a model.

    Args:
      folder: folder with ``adapter_config.json``.
      family: family of the model, whose name maps are tried.
      leaves: arrays or shape structs of the model by ``params/…`` and ``batch_stats/…``.
      sizes: `StagedModel.sizes` of the model.

    Raises:
      UserError: a missing file, a kind of adapter or a setting that no delta expresses, or a tensor
        that does not belong to the model.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder}: {CONFIG} is missing; expected the folder of an adapter of peft")
    config = read_json(path)
    kind = str(config.get("peft_type", ""))
    if kind not in ("LORA", "IA3"):
        raise UserError(f"{path}: peft_type {kind!r}: expected LORA or IA3, which have deltas here")
    if kind == "LORA":
        _require_plain(config, path)
    files = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not files:
        raise UserError(f"{folder}: {WEIGHTS[0]} is missing")
    with open_weights(files[0]) as weights:
        tensors = {
            name.removeprefix(PREFIX): np.asarray(weights.read(name), np.float32)
            if np.issubdtype(weights.spec(name)[1], np.floating)
            or str(weights.spec(name)[1]) == "bfloat16"
            else weights.read(name)
            for name in weights.names()
        }
    parts: dict[str, dict[str, np.ndarray]] = {}
    others: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if match := _PART.fullmatch(name):
            parts.setdefault(match[1], {})[match[2]] = array
        else:
            others[re.sub(r"\.(base_layer|modules_to_save)\.", ".", name)] = array
    name_map = _map(family, [f"{m}.weight" for m in parts], [*others], leaves, files[0])
    reader = _Reader(files[0], name_map, leaves)
    for module, found in parts.items():
        if kind == "IA3":
            reader.scales(module, found, config)
        else:
            reader.factors(module, found, config)
    for name, array in others.items():
        reader.replaced(name, array, sizes)
    for delta in reader.deltas:
        delta.leaves({p.removeprefix("params/"): x for p, x in leaves.items()})
    digest = file_digest(files[0])
    return Adapter(
        tuple(reader.deltas),
        reader.leaves,
        reader.lengths,
        f"{folder.name}/{files[0].name}",
        digest,
    )


def _require_plain(config: Mapping[str, Any], path: Path) -> None:
    for key in _LEFT_EMPTY:
        if config.get(key):
            raise UserError(f"{path}: {key}={config[key]!r} is not supported; expected nothing")
    start = config.get("init_lora_weights")
    if not any(start is known or start == known for known in _STARTS):
        raise UserError(
            f"{path}: init_lora_weights={start!r} has changed the weights of the base, which is "
            f"then another one than yours; in peft, save_pretrained(…, "
            f"path_initial_model_for_weight_conversion=…) writes a LoRA for the unchanged base"
        )


def _map(
    family: str, names: Sequence[str], others: Sequence[str], leaves: Iterable[str], path: Path
) -> NameMap:
    """The name map of the family that knows all modules, and puts most other tensors into leaves.

    Name maps of one project may differ in what they ignore, such as a pooler.
    """
    candidates = [m for m in maps_of(family) if m.origin != "native"]
    known = {*leaves}
    fitting = [m for m in candidates if names and all(map(m.targets, names))]
    if fitting:
        return max(
            fitting, key=lambda m: sum(t.leaf in known for name in others for t in m.targets(name))
        )
    unknown = [n for n in names if not any(m.targets(n) for m in candidates)]
    example = f", such as {unknown[0].removesuffix('.weight')!r}" if unknown else ""
    raise UserError(
        f"{path}: {len(unknown)} of {len(names)} modules of the adapter are no modules of a model "
        f"of the family {family!r}{example}; is the adapter that of another model?"
    )


@dataclasses.dataclass
class _Reader:
    """Collects the deltas and the values of an adapter, module by module."""

    path: Path
    name_map: NameMap
    base: Mapping[str, Any]
    deltas: list[Delta] = dataclasses.field(default_factory=list)
    leaves: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    lengths: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def _targets(self, module: str) -> list[Target]:
        targets = [*self.name_map.targets(f"{module}.weight")]
        for target in targets:
            if target.leaf not in self.base or not target.leaf.endswith("/kernel"):
                raise UserError(f"{self.path}: {module}: the model has no kernel {target.leaf!r}")
        return sorted(targets, key=lambda target: target.part)

    def factors(
        self, module: str, found: Mapping[str, np.ndarray], config: Mapping[str, Any]
    ) -> None:
        """The LoRA deltas of one module of torch."""
        if not {"lora_A", "lora_B"} <= found.keys():
            raise UserError(f"{self.path}: {module}: expected lora_A and lora_B")
        down, up = found["lora_A"], found["lora_B"]
        if down.shape[0] != up.shape[1]:
            raise UserError(
                f"{self.path}: {module}: lora_A of the shape {down.shape} does not fit lora_B of "
                f"{up.shape}"
            )
        rank = down.shape[0]
        alpha = float(_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8)))
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        rows = up.reshape(up.shape[0], rank)
        targets = self._targets(module)
        length = found.get("lora_magnitude_vector")
        for target, own in zip(targets, np.split(rows, len(targets)), strict=True):
            # The block form of several modules: only the columns that this module uses.
            used = own.any(0) | ~rows.any(0) if len(targets) > 1 else np.ones(rank, bool)
            if not used.any() and length is None:
                continue
            used = used if used.any() else np.arange(rank) == 0
            ours = target.leaf.removeprefix("params/").removesuffix("/kernel")
            kept = int(used.sum())
            rslora = bool(config.get("use_rslora"))
            delta = LoRA(
                ours, kept, scale * (kept**0.5 if rslora else kept), rslora, length is not None
            )
            self.deltas.append(delta)
            self.leaves[f"params/{delta.path('a')}"] = target.layout.forward(down[used])
            self.leaves[f"params/{delta.path('b')}"] = np.ascontiguousarray(own[:, used].T)
            if length is not None:
                count = len(targets)
                self.lengths[ours] = np.split(length.reshape(-1), count)[target.part[0]]

    def scales(
        self, module: str, found: Mapping[str, np.ndarray], config: Mapping[str, Any]
    ) -> None:
        """The IA3 deltas of one module of torch."""
        array = found["ia3_l"]
        inputs = _among(module, config.get("feedforward_modules"))
        targets = self._targets(module)
        flat = array.reshape(-1)
        parts = [flat] * len(targets) if inputs else np.split(flat, len(targets))
        for target, own in zip(targets, parts, strict=True):
            if len(targets) > 1 and (own == 1).all() and not (flat == 1).all():
                continue
            delta = IA3(target.leaf.removeprefix("params/").removesuffix("/kernel"), inputs)
            self.deltas.append(delta)
            self.leaves[f"params/{delta.path('scale')}"] = np.array(own)

    def replaced(self, name: str, array: np.ndarray, sizes: Mapping[str, int] | None) -> None:
        """Leaves of the base whose values the adapter's file holds."""
        targets = self.name_map.targets(name)
        if not targets and self.name_map.ignored(name) is None:
            raise UserError(f"{self.path}: the tensor {name!r} belongs to no leaf of the model")
        for target in targets:
            leaf = self.base.get(target.leaf)
            value = target.forward(array, sizes)
            if leaf is None or tuple(leaf.shape) != value.shape:
                expected = "no such leaf" if leaf is None else f"the shape {tuple(leaf.shape)}"
                raise UserError(
                    f"{self.path}: {name!r} has values of the shape {value.shape} for "
                    f"{target.leaf}; the model has {expected}"
                )
            self.leaves[target.leaf] = value


def _among(module: str, names: Any) -> bool:
    """Whether peft's setting, a regex or a list of ends of names, has the module."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def _pattern(patterns: Any, module: str, default: Any) -> Any:
    """The value of peft's ``alpha_pattern`` for a module."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
