"""A weight file into a model's variables, with every tensor accounted for."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from finetune_jax import tree
from finetune_jax.errors import UserError, nearest
from finetune_jax.pretrained.formats import read_weights
from finetune_jax.pretrained.names import TRANSFORMS, find_map


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of one tensor of the file, or of one leaf the file did not fill.

    Attributes:
      decision: ``loaded``, ``reshaped`` (loaded through a transform), ``reinitialised`` or
        ``dropped``.
      leaf: path with its collection, such as ``params/head/kernel``; None when dropped.
      source: name in the file; None for a leaf that has no tensor.
      checksum: of the array that ended up in the model.
    """

    decision: str
    reason: str
    leaf: str | None
    source: str | None
    source_shape: tuple[int, ...] | None
    source_dtype: str | None
    shape: tuple[int, ...] | None
    dtype: str | None
    checksum: str | None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Every tensor of one weight file and every leaf of the model, once each."""

    file: str
    sha256: str
    family: str
    origin: str
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    def summary(self) -> str:
        """Counts per decision, then each tensor that was not simply loaded, with the reason."""
        counts = Counter(row.decision for row in self.rows)
        lines = [
            f"{self.file} ({self.origin} names): "
            + ", ".join(f"{n} {decision}" for decision, n in sorted(counts.items()))
        ]
        reasons = Counter(
            (r.decision, r.reason) for r in self.rows if r.decision in ("reinitialised", "dropped")
        )
        lines += [f"  {n} {decision}: {why}" for (decision, why), n in reasons.items()]
        return "\n".join(lines)


def load(
    path: str | Path,
    family: str,
    init: dict[str, Any],
    *,
    reinitialise_head: bool = False,
) -> tuple[dict[str, Any], Manifest]:
    """Fills a model's variables from a weight file.

    Only the head may differ: where its shape does not fit, or on request, the whole head keeps its
    initial values. All else must match in name and shape; all problems are reported at once.

    Args:
      path: weight file.
      family: of the model, for the name map.
      init: initialised ``{"params": …, "batch_stats": …}``.
      reinitialise_head: start from a new head even where the file's fits.

    Returns:
      (variables as numpy arrays in `init`'s dtypes, manifest).

    Raises:
      UserError: naming file, tensor, leaf path, what was expected and what was found.
    """
    arrays = read_weights(path)
    names = find_map(family, arrays, str(path))
    targets = tree.flatten(init)
    problems: list[str] = []
    claimed: dict[str, tuple[str, str]] = {}
    dropped: dict[str, str] = {}
    for name in arrays:
        target = names.target(name)
        if target is None:
            reason = names.ignore_reason(name)
            if reason is None:
                problems.append(f"tensor {name!r} has no place in {family}")
            else:
                dropped[name] = reason
        elif target[0] not in targets:
            problems.append(
                f"tensor {name!r} maps to {target[0]!r}, which the model does not have."
                f"{nearest(target[0], targets)}"
            )
        elif target[0] in claimed:
            problems.append(f"tensors {claimed[target[0]][0]!r} and {name!r} are the same leaf")
        else:
            claimed[target[0]] = (name, target[1])

    new_head = "asked for by pretrained.new_head" if reinitialise_head else ""
    loaded: dict[str, np.ndarray] = {}
    for leaf, initial in targets.items():
        is_head = leaf.startswith("params/head/")
        if leaf not in claimed:
            if is_head:
                new_head = new_head or f"{leaf} is not in the file"
            else:
                problems.append(f"leaf {leaf!r} is missing from the file")
            continue
        name, transform = claimed[leaf]
        source = arrays[name]
        try:
            value = TRANSFORMS[transform](source)
        except ValueError:
            value = source
        if value.shape != tuple(initial.shape):
            found = f"shape {tuple(value.shape)} in the file, {tuple(initial.shape)} in the model"
            if is_head:
                new_head = new_head or found
            else:
                problems.append(f"tensor {name!r} for {leaf!r}: {found}")
            continue
        if not (value.dtype.kind == "f" or value.dtype.name == "bfloat16"):
            problems.append(f"tensor {name!r}: expected floating point, found {value.dtype}")
        elif not np.isfinite(value.astype(np.float32)).all():
            problems.append(f"tensor {name!r} holds NaN or infinity")
        else:
            loaded[leaf] = np.ascontiguousarray(value, dtype=initial.dtype)
    if problems:
        shown = "\n".join(f"  {p}" for p in problems[:20])
        more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise UserError(f"{path} does not fit the model; nothing was loaded:\n{shown}{more}")

    rows = []
    for leaf, initial in targets.items():
        name, transform = claimed.get(leaf, (None, "copy"))
        source = None if name is None else arrays[name]
        if new_head and leaf.startswith("params/head/"):
            decision, reason = "reinitialised", f"new head: {new_head}"
            loaded[leaf] = np.asarray(initial)
        else:
            decision = "loaded" if transform == "copy" else "reshaped"
            reason = "" if transform == "copy" else transform
            if source.dtype != initial.dtype:
                reason = f"{reason} {source.dtype} to {initial.dtype}".strip()
        rows.append(_row(decision, reason, leaf, name, source, loaded[leaf]))
    rows += [_row("dropped", why, None, name, arrays[name], None) for name, why in dropped.items()]
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    manifest = Manifest(Path(path).name, digest, family, names.origin, tuple(rows))
    variables = tree.unflatten({leaf: loaded[leaf] for leaf in targets})
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}, manifest


def _row(
    decision: str,
    reason: str,
    leaf: str | None,
    name: str | None,
    source: np.ndarray | None,
    value: np.ndarray | None,
) -> Row:
    return Row(
        decision=decision,
        reason=reason,
        leaf=leaf,
        source=name,
        source_shape=None if source is None else tuple(source.shape),
        source_dtype=None if source is None else str(source.dtype),
        shape=None if value is None else tuple(value.shape),
        dtype=None if value is None else str(value.dtype),
        checksum=None if value is None else tree.checksum(value),
    )
