"""Reads the pickles inside PyTorch files without torch and without running any code they name.

A pickle is a program. Two checks make the program harmless. Before it runs, its opcodes are
compared with a list of opcodes that describe plain data. While it runs, it can only use a few
names: torch's tensors, parameters and storages, which are replaced by functions that record their
arguments, and the plain data of `plain_data`, whose stand-ins keep their content. torch reads files
in the same way with ``weights_only=True``.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from finetune_jax.errors import UserError
from finetune_jax.pretrained.formats.plain_data import PlainData, stand_in


class StorageType(NamedTuple):
    """The class of a storage, which determines the dtype of its elements."""

    dtype: np.dtype


class Storage(NamedTuple):
    """Consecutive elements of the file: `length` elements of the storage `key`, from `start` on."""

    dtype: np.dtype
    key: str
    length: int
    start: int


class TensorRecord(NamedTuple):
    """The arguments from which torch rebuilds a tensor; `torch_file` checks them."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


# The replacements are tuples and instances with empty slots, so that the BUILD opcode, which sets
# attributes of objects, cannot set any.
class _RebuildTensor:
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
        return TensorRecord(storage, offset, shape, strides)


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


class _RebuildSubclass:
    __slots__ = ()

    def __call__(self, rebuild: Any, kind: Any, arguments: Any, *_: Any) -> Any:
        if not isinstance(rebuild, _RebuildTensor | _RebuildParameter):
            raise UserError(f"its tensor of a class of its own is rebuilt by {shown(rebuild)}")
        return rebuild(*arguments)


class _Size:
    __slots__ = ()

    def __call__(self, sizes: Any = ()) -> Any:
        return tuple(sizes)


class _MakeDict:
    __slots__ = ()

    def __call__(self, items: Any = ()) -> Any:
        entries = OrderedEntries()
        for key, value in items:
            entries[key] = value
        return entries


class OrderedEntries(dict):
    """Replaces OrderedDict: refuses a repeated key, and drops attributes (``_metadata``)."""

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        if key in self:
            raise UserError(f"the entry {shown(key)} is given twice")
        super().__setitem__(key, value)

    def __setstate__(self, state: Any) -> None:
        del state


_STORAGE_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
}

_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _MakeDict(),
    ("torch", "Size"): _Size(),
    # The name without "_v2" is in files of torch 0.3 and older, such as the CIFAR ResNets of 2018.
    ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("torch._utils", "_rebuild_parameter_with_state"): _RebuildParameter(),
    ("torch._tensor", "_rebuild_from_type_v2"): _RebuildSubclass(),
    ("torch", "Tensor"): PlainData,
    ("torch.nn.parameter", "Parameter"): PlainData,
    **{("torch", name): StorageType(np.dtype(t)) for name, t in _STORAGE_DTYPES.items()},
}

# Opcodes of plain data, and those that call `find_class`, whose error gives the refused name. The
# list has neither the extension registry (EXT*), which bypasses `find_class`, nor out-of-band
# buffers.
_OPCODE_NAMES = (
    "PROTO FRAME STOP MARK POP POP_MARK DUP MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET "
    "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 LIST EMPTY_LIST APPEND APPENDS TUPLE EMPTY_TUPLE TUPLE1 "
    "TUPLE2 TUPLE3 DICT EMPTY_DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET PERSID BINPERSID "
    "GLOBAL STACK_GLOBAL INST OBJ NEWOBJ NEWOBJ_EX REDUCE BUILD"
)
_OPCODES = frozenset(_OPCODE_NAMES.split())


def shown(value: Any) -> str:
    """Text of a pickle's value for a message, without the content of containers."""
    if isinstance(value, int) and value.bit_length() > 128:
        return "an integer of more than 128 bits"  # Python refuses to print very long integers
    plain = value is None or isinstance(value, (str, bytes, int, float))
    return f"{value!r:.100}" if plain else f"a {type(value).__name__}"


class _Unpickler(pickle.Unpickler):
    """Resolves `_GLOBALS` and plain data only; storages become `Storage` records."""

    def __init__(self, program: io.BytesIO) -> None:
        super().__init__(program, encoding="utf-8")
        self._plain: dict[tuple[str, str], type[PlainData]] = {}

    def find_class(self, module: str, name: str) -> Any:
        key = module, name
        if key in _GLOBALS:
            return _GLOBALS[key]
        if key not in self._plain:
            found = stand_in(module, name)
            if module == "torch._utils" and name.startswith("_rebuild"):
                raise UserError(
                    f"it has tensors of a kind that is not read ({name}), such as quantized, "
                    "sparse or float8 ones; save dense tensors of float32, float16 or bfloat16"
                )
            if found is None:
                raise UserError(
                    f"its pickle asks for {module}.{name}, which is not part of a state dict, and "
                    "pickled code is never run. Save only the state dict, or save it as "
                    ".safetensors."
                )
            self._plain[key] = found
        return self._plain[key]

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage_type, key, _, length, *view = pid
        if kind != "storage" or not isinstance(storage_type, StorageType):
            raise UserError(
                f"expected a storage of a known type, found one of {shown(storage_type)}"
            )
        if type(length) is not int or length < 0:
            raise UserError(f"storage {shown(key)} declares {shown(length)} elements")
        start = 0
        if view and view[0] is not None:  # an old file: (key, first element, elements) of a view
            _, start, length = view[0]
            if type(start) is not int or type(length) is not int or start < 0 or length < 0:
                raise UserError(f"storage {shown(key)} has a view that starts at {shown(start)}")
        if not isinstance(key, str):
            raise UserError(f"expected the name of a storage, found {shown(key)}")
        return Storage(storage_type.dtype, key, length, start)


def load_pickle(stream: io.BytesIO | mmap.mmap) -> Any:
    """Reads one pickle from a stream, whose position is then behind the pickle.

    Args:
      stream: a stream in memory, because a read from a file allocates as many bytes as requested.

    Returns:
      Plain Python data with `TensorRecord` in place of every tensor.

    Raises:
      UserError: the pickle is damaged, or needs anything else than tensors and plain data.
    """
    begin = stream.tell()
    try:
        indices = [0]
        total = 0
        operations = pickletools.genops(stream)  # type: ignore[arg-type]  # reads from a mmap too
        for opcode, argument, position in operations:
            if opcode.name not in _OPCODES:
                raise UserError(f"its pickle uses {opcode.name} at byte {position}")
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument is not None:
                indices.append(int(argument))
            total += 1
        # The memo is an array up to its highest index, which could need 4 GiB for a few bytes.
        if max(indices) > total:
            raise UserError(f"its pickle has {total} operations and a memo index {max(indices)}")
        end = stream.tell()
        stream.seek(begin)
        program = stream.read(end - begin)
        return _Unpickler(io.BytesIO(program)).load()
    except UserError:
        raise
    except Exception as error:  # the standard library: a damaged pickle may raise anything
        raise UserError(f"its pickle is damaged: {type(error).__name__}: {error}") from error
