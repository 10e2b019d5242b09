"""Stand-ins for the objects that training scripts pickle beside their tensors.

Examples are the parsed arguments of the script, a NumPy number, a path, a date, or the settings of
OmegaConf. A stand-in keeps the content of its object and nothing of the object's behaviour: no
module is imported, and no method of the real class runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CLASSES = {
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "collections": "defaultdict Counter deque",
    "datetime": "datetime date time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "uuid": "UUID",
    "pathlib": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "builtins": (
        "object int float complex bool str bytes bytearray list tuple dict set frozenset range "
        "xrange slice NoneType"
    ),
    "numpy": (
        "dtype ndarray bool_ float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 "
        "uint64 str_ bytes_ complex64 complex128"
    ),
    "numpy.core.multiarray": "scalar _reconstruct",
    "torch": (
        "device dtype layout memory_format strided preserve_format contiguous_format channels_last "
        "float16 float32 float64 bfloat16 half float double int8 int16 int32 int64 uint8 bool"
    ),
    "_codecs": "encode",
    "copyreg": "_reconstructor",
    "easydict": "EasyDict",
    "addict.addict": "Dict",
    "munch": "Munch DefaultMunch",
    "yacs.config": "CfgNode",
    "fvcore.common.config": "CfgNode",
    "mmengine.config.config": "ConfigDict Config",
    "mmengine.logging.history_buffer": "HistoryBuffer",
    "mmcv.utils.config": "ConfigDict Config",
}
_SPELLINGS = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "pathlib._local": "pathlib",
    "addict": "addict.addict",
}
# Settings and callbacks; each class of these packages has a stand-in.
_PACKAGES = ("omegaconf", "typing", "pytorch_lightning", "lightning", "lightning_fabric")


class PlainData(dict):
    """The content of an object: its attributes and entries, and what it was called with."""

    __slots__ = ()
    __hash__ = object.__hash__  # type: ignore[assignment]  # an object may be the key of a dict

    def __init__(self, *arguments: Any, **_: Any) -> None:
        super().__init__()
        given = tuple(a for a in arguments if not isinstance(a, type))  # defaultdict has a class
        if len(given) == 1 and isinstance(given[0], Mapping):
            self.update(given[0])
        elif given:
            self["arguments"] = given

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, Mapping):
                self.update(part)

    def append(self, item: Any) -> None:
        """Adds an item of an object that is a list."""
        self.setdefault("items", []).append(item)

    def extend(self, items: Any) -> None:
        """Adds items of an object that is a list."""
        self.setdefault("items", []).extend(items)


def stand_in(module: str, name: str) -> type[PlainData] | None:
    """A class of `PlainData` for a harmless class or function; None for any other name."""
    module = _SPELLINGS.get(module, module)
    known = name in _CLASSES.get(module, "").split() or module.partition(".")[0] in _PACKAGES
    return type(name, (PlainData,), {"__slots__": ()}) if known and name.isidentifier() else None
