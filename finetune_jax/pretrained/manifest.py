"""The manifest of a load: what became of every tensor of the file and of every leaf."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable
from typing import Any, Literal

Decision = Literal["loaded", "transformed", "cast", "constant", "reinitialised", "dropped"]


@dataclasses.dataclass(frozen=True)
class ManifestRow:
    """One tensor of the file or a part of it, one leaf of the model, or (mostly) both together.

    Attributes:
      source_name, source_shape, source_dtype: the tensor; None for a leaf that the file lacks.
      leaf: ``params/...`` or ``batch_stats/...``; None for a tensor that was dropped.
      shape, dtype: of the leaf.
      decision: `loaded` as it was, `transformed` to our layout, `cast` to the leaf's dtype (and
        perhaps transformed: see the reason), `constant`: the value that stands for what the origin
        does without, `reinitialised`: the leaf kept its initial values, `dropped`: the tensor has
        no place.
      reason: why, or how.
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
    """Every leaf of the model in one row, every tensor of the file in one per leaf it fills.

    Attributes:
      file: the file's name, without its folder.
      digest: waits for `sha256`, which is taken while others go on.
      family, origin: of the name map.
      beside: entries of the file that are not weights (an epoch, an optimizer) and were not read.
      rows: in the order of the file, then the leaves it lacks in the order of the model.
    """

    file: str
    digest: Callable[[], str] = dataclasses.field(repr=False, compare=False)
    family: str
    origin: str
    beside: tuple[str, ...]
    rows: tuple[ManifestRow, ...]

    @property
    def sha256(self) -> str:
        """Of the file, in hex, see `Weights.sha256`; UserError if it could not be read."""
        return self.digest()

    def counts(self) -> dict[str, int]:
        """Number of rows per decision, decisions without rows left out."""
        return dict(collections.Counter(row.decision for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """All of it under the fields' own names, as what JSON is made of: dicts, lists, text."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["digest"]
        values |= {"sha256": self.sha256, "rows": [dataclasses.asdict(r) for r in self.rows]}
        return json.loads(json.dumps(values))

    def summary(self) -> str:
        """A few lines for the terminal: counts, and every tensor or leaf that was not loaded."""
        counts = ", ".join(f"{count} {decision}" for decision, count in self.counts().items())
        lines = [
            f"{self.file} (sha256 {self.sha256[:12]}…) as {self.family}, names of {self.origin}",
            f"  {counts}",
        ]
        for row in self.rows:
            if row.decision in ("constant", "reinitialised", "dropped"):
                lines.append(f"  {row.decision}: {row.leaf or row.source_name}: {row.reason}")
        if self.beside:
            lines.append(f"  beside the weights, not read: {', '.join(self.beside)}")
        return "\n".join(lines)
