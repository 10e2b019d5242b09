"""Name maps: for each model family and origin, which source tensor is which leaf.

A map is an ordered table of (regex on the source name, target template, transform). Targets name
the collection first: ``params/stem/conv/kernel``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable

import numpy as np

from finetune_jax.errors import UserError

# PyTorch keeps convolutions as (out, in, height, width) and linear layers as (out, in).
TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "copy": lambda x: x,
    "oihw_to_hwio": lambda x: x.transpose(2, 3, 1, 0),
    "transpose": lambda x: x.T,
}


@dataclasses.dataclass(frozen=True)
class NameMap:
    """The names one origin gives to one family's tensors.

    Attributes:
      origin: whose names.
      rules: (regex, target template, transform name); the first full match decides.
      ignored: regex to reason, for tensors that hold nothing the model needs.
    """

    origin: str
    rules: tuple[tuple[str, str, str], ...]
    ignored: tuple[tuple[str, str], ...] = ()

    def target(self, name: str) -> tuple[str, str] | None:
        """(leaf path with collection, transform name), or None."""
        for pattern, template, transform in self.rules:
            match = re.fullmatch(pattern, name)
            if match:
                return match.expand(template), transform
        return None

    def ignore_reason(self, name: str) -> str | None:
        """Why a tensor is dropped, or None."""
        for pattern, reason in self.ignored:
            if re.fullmatch(pattern, name):
                return reason
        return None


NATIVE = NameMap("finetune_jax", ((r"((?:params|batch_stats)/.+)", r"\1", "copy"),))

_BATCH_NORM = (("weight", "params", "scale"), ("bias", "params", "bias")) + (
    ("running_mean", "batch_stats", "mean"),
    ("running_var", "batch_stats", "var"),
)

# github.com/akamaster/pytorch_resnet_cifar10
_AKAMASTER = NameMap(
    "akamaster",
    (
        (r"(?:module\.)?conv1\.weight", "params/stem/conv/kernel", "oihw_to_hwio"),
        (
            r"(?:module\.)?layer(\d)\.(\d+)\.conv(\d)\.weight",
            r"params/layer\1_block\2/conv\3/kernel",
            "oihw_to_hwio",
        ),
        *(
            (rf"(?:module\.)?bn1\.{theirs}", f"{collection}/stem/norm/{ours}", "copy")
            for theirs, collection, ours in _BATCH_NORM
        ),
        *(
            (
                rf"(?:module\.)?layer(\d)\.(\d+)\.bn(\d)\.{theirs}",
                rf"{collection}/layer\1_block\2/norm\3/{ours}",
                "copy",
            )
            for theirs, collection, ours in _BATCH_NORM
        ),
        (r"(?:module\.)?linear\.weight", "params/head/kernel", "transpose"),
        (r"(?:module\.)?linear\.bias", "params/head/bias", "copy"),
    ),
    ((r".*\.num_batches_tracked", "a counter PyTorch needs only without momentum"),),
)

MAPS: dict[str, tuple[NameMap, ...]] = {
    "resnet_cifar": (NATIVE, _AKAMASTER),
    "vit": (NATIVE,),
}


def find_map(family: str, names: Iterable[str], path: str) -> NameMap:
    """Returns the map that knows most of `names`.

    Raises:
      UserError: none knows any of them.
    """
    names = list(names)
    known = {m: sum(m.target(n) is not None for n in names) for m in MAPS[family]}
    best = max(known, key=known.__getitem__)
    if not known[best]:
        origins = ", ".join(m.origin for m in MAPS[family])
        raise UserError(
            f"{path}: none of its {len(names)} tensors, such as {names[0]!r}, has a name known for "
            f"the family {family!r} (known origins: {origins})"
        )
    return best
