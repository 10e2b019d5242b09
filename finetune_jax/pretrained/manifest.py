"""The manifest of a load: how every tensor of the file and every leaf of the model was treated."""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from finetune_jax.pretrained.formats.limits import is_optimizer

_SHOWN = 3  # names of dropped tensors that a summary shows for each reason
_MANY = 12  # other entries that are listed one by one

Decision = Literal["loaded", "transformed", "cast", "constant", "reinitialised", "dropped"]


@dataclasses.dataclass(frozen=True)
class ManifestRow:
    """One row of the manifest: a tensor of the file, or a part of it, and the leaf that it fills.

    Attributes:
      source_name, source_shape, source_dtype: name, shape and dtype of the tensor; None for a leaf
        without a tensor in the file.
      leaf: ``params/...`` or ``batch_stats/...``; None for a tensor that was dropped.
      shape, dtype: shape and dtype of the leaf.
      decision: ``loaded``: the values are unchanged. ``transformed``: the values are in our layout.
        ``cast``: the values are in the leaf's dtype, and perhaps transformed. ``constant``: the
        leaf has the value that reproduces an origin without such a tensor. ``reinitialised``: the
        leaf kept its initial values. ``dropped``: the tensor fills no leaf.
      reason: explanation of the decision.
    """

    source_name: str | None
    source_shape: tuple[int, ...] | None
    source_dtype: str | None
    leaf: str | None
    shape: tuple[int, ...] | None
    dtype: str | None
    decision: Decision
    reason: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All rows of a load: one per leaf of the model, and one per tensor that fills no leaf.

    Attributes:
      file: the file's name, without its folder.
      digest: function that waits for `sha256`, which a thread computes.
      family, origin: family and origin of the name map.
      other_entries: names of entries that are no weights (an epoch, an optimizer) and were not
        read.
      rows: rows in the order of the file, then leaves that the file lacks, in the model's order.
      weights: role of the tensors in a file with several sets of weights, one of `roles.ROLES`.
      prefix: text before the names of the model's tensors, which was removed from the names.
    """

    file: str
    digest: Callable[[], str] = dataclasses.field(repr=False, compare=False)
    family: str
    origin: str
    other_entries: tuple[str, ...]
    rows: tuple[ManifestRow, ...]
    weights: str = ""
    prefix: str = ""

    @property
    def sha256(self) -> str:
        """SHA-256 of the file in hex; see `Weights.sha256`, whose errors this property raises."""
        return self.digest()

    def counts(self) -> dict[str, int]:
        """Number of rows per decision, without decisions that have no rows."""
        return dict(collections.Counter(row.decision for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON: its fields (``other_entries`` as ``beside``) and ``sha256``."""
        keys = {"other_entries": "beside"}
        values = {keys.get(f.name, f.name): getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["digest"]
        values |= {"sha256": self.sha256, "rows": [dataclasses.asdict(r) for r in self.rows]}
        result: dict[str, Any] = json.loads(json.dumps(values))
        return result

    def summary(self) -> str:
        """Lines for the terminal: counts, and every tensor or leaf that was not loaded."""
        counts = ", ".join(f"{count} {decision}" for decision, count in self.counts().items())
        lines = [
            f"{self.file} (sha256 {self.sha256[:12]}…) as {self.family}, names of {self.origin}",
            f"  {counts}",
        ]
        if self.weights:
            lines.append(f"  the {self.weights} weights of the file")
        if self.prefix:
            lines.append(f"  the prefix {self.prefix!r} of the names was taken off")
        dropped: dict[str, list[str]] = {}
        for row in self.rows:
            if row.decision in ("constant", "reinitialised"):
                lines.append(f"  {row.decision}: {row.leaf}: {row.reason}")
            elif row.decision == "dropped":
                dropped.setdefault(row.reason, []).append(str(row.source_name))
        for reason, names in dropped.items():
            shown = ", ".join(names[:_SHOWN])
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            lines.append(f"  dropped: {shown}{more}: {reason}")
        if self.other_entries:
            lines.append(f"  other entries, not read: {shorten(self.other_entries)}")
        return "\n".join(lines)


def shorten(entries: Sequence[str]) -> str:
    """A list of entries for a message; the optimizer's and many below one key are counted."""
    slots = [entry for entry in entries if is_optimizer(entry)]
    if len(slots) > 1:
        rest = [entry for entry in entries if not is_optimizer(entry)]
        state = f"state of an optimizer ({len(slots)} entries)"
        return f"{shorten(rest)}, {state}" if rest else state
    groups: dict[str, list[str]] = {}
    for entry in entries:
        groups.setdefault(re.split(r"[./\[]", entry)[0] if len(entries) > _MANY else entry, [])
    for entry in entries:
        key = re.split(r"[./\[]", entry)[0]
        groups[key if len(entries) > _MANY else entry].append(entry)
    texts = [
        f"{key} ({len(found)} entries)" if len(found) > 1 else found[0]
        for key, found in groups.items()
    ]
    return ", ".join(texts[:_MANY]) + (
        f" and {len(texts) - _MANY} more" if len(texts) > _MANY else ""
    )
