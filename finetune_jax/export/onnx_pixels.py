"""The resizing of `pixels.resized` as an ONNX graph."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from finetune_jax.data.images import LARGEST_RESIZED
from finetune_jax.export.pixels import BITS, FILTERS, pillow_may_resize_rows_first

if TYPE_CHECKING:
    import onnx

Value = str
"""Name of a tensor of a graph."""


class Nodes:
    """Nodes of a graph in the order of computation.

    ``nodes("Add", a, 0.5)`` adds a node and returns the name of its output. Inputs are names, or
    numbers, which are f64, or arrays.
    """

    def __init__(self, names: Iterator[int] | None = None) -> None:
        self.names = itertools.count() if names is None else names
        self.protos: list[onnx.NodeProto] = []

    def __call__(self, op: str, *inputs: Value | float | np.ndarray, **attributes: Any) -> Value:
        """Adds a node with one output, and returns the name of the output."""
        from onnx import helper

        output = f"resize_{next(self.names)}"
        values = [x if isinstance(x, str) else self._constant(x) for x in inputs]
        self.protos.append(helper.make_node(op, values, [output], **attributes))
        return output

    def cast(self, value: Value, dtype: Any) -> Value:
        """The values in another dtype."""
        from onnx import helper

        return self("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def _constant(self, value: float | np.ndarray) -> Value:
        from onnx import numpy_helper

        array = value if isinstance(value, np.ndarray) else np.float64(value)
        return self("Constant", value=numpy_helper.from_array(np.asarray(array)))

    def inner(self, output: Callable[[Nodes], Value]) -> onnx.GraphProto:
        """A branch of an ``If``, which may read the tensors of this graph: f64 of any shape."""
        from onnx import TensorProto, helper

        nodes = Nodes(self.names)
        result = helper.make_tensor_value_info(output(nodes), TensorProto.DOUBLE, None)
        return helper.make_graph(nodes.protos, "branch", [], [result])


class _Window(NamedTuple):
    """As `pixels._Window`, with names of f64 scalars."""

    start: Value
    scale: Value
    skipped: Value


def resizing(side: int, interpolation: str, crop: float, pairs: bool, opset: int) -> Any:
    """A model that resizes images of any size with the pixels of Pillow.

    Args:
      side, interpolation, crop: as of `finetune_jax.data.images.resize`.
      pairs: whether examples are pairs of images.
      opset: version of ONNX.

    Returns:
      ``onnx.ModelProto`` with the input ``image`` uint8[b, height, width, 3], of pairs
      uint8[b, 2, height, width, 3], and the output ``square`` uint8[b, side, side, 3], of pairs
      uint8[b, 2, side, side, 3].
    """
    from onnx import helper

    nodes = Nodes()
    images = "image"
    if pairs:
        shape = nodes("Shape", images, start=2)
        images = nodes("Reshape", images, nodes("Concat", np.array([-1]), shape, axis=0))
    square = _resized(nodes, images, side, interpolation, crop)
    whole = nodes("Identity", np.array([-1, 2, side, side, 3] if pairs else [-1, side, side, 3]))
    nodes.protos.append(helper.make_node("Reshape", [square, whole], ["square"]))
    views = [2] if pairs else []
    return helper.make_model(
        helper.make_graph(
            nodes.protos,
            "resizing",
            [_uint8("image", ["b", *views, "height", "width", 3])],
            [_uint8("square", ["b", *views, side, side, 3])],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
    )


def _uint8(name: str, shape: list[Any]) -> onnx.ValueInfoProto:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.UINT8, shape)


def _resized(nodes: Nodes, images: Value, side: int, interpolation: str, crop: float) -> Value:
    height, width = (_size(nodes, images, axis) for axis in (1, 2))
    rows, columns, rows_first = _windows(nodes, height, width, side, crop)
    if interpolation == "nearest":
        chosen = nodes("Gather", images, _nearest(nodes, rows, height, side), axis=1)
        return nodes("Gather", chosen, _nearest(nodes, columns, width, side), axis=2)
    down = _weights(nodes, interpolation, rows, height, side)
    across = nodes("Transpose", _weights(nodes, interpolation, columns, width, side), perm=[1, 0])
    planes = nodes("Transpose", images, perm=[0, 3, 1, 2])
    planes = nodes.cast(planes, np.float64)

    def columns_last(inner: Nodes) -> Value:
        return _bytes(inner, inner("MatMul", _bytes(inner, inner("MatMul", down, planes)), across))

    def rows_last(inner: Nodes) -> Value:
        return _bytes(inner, inner("MatMul", down, _bytes(inner, inner("MatMul", planes, across))))

    branches = {
        "then_branch": nodes.inner(columns_last),
        "else_branch": nodes.inner(rows_last),
    }
    planes = nodes.cast(nodes("If", rows_first, **branches), np.uint8)
    return nodes("Transpose", planes, perm=[0, 2, 3, 1])


def _size(nodes: Nodes, images: Value, axis: int) -> Value:
    """A side of images as an f64 scalar."""
    size = nodes("Squeeze", nodes("Shape", images, start=axis, end=axis + 1))
    return nodes.cast(size, np.float64)


def _windows(
    nodes: Nodes, height: Value, width: Value, side: int, crop: float
) -> tuple[_Window, _Window, Value]:
    """As `pixels._windows`."""
    if not crop:
        zero = nodes("Sub", height, height)
        rows, columns = (_Window(zero, nodes("Div", n, side), zero) for n in (height, width))
        fewer = _rows_first(nodes, nodes("Sub", height, side), nodes("Sub", width, side))
        return rows, columns, fewer
    same = nodes("And", nodes("Equal", height, side), nodes("Equal", width, side))
    scale = nodes("Div", round(side / crop), nodes("Min", height, width))
    tall, wide = (
        nodes("Where", same, side, nodes("Max", side, nodes("Round", nodes("Mul", size, scale))))
        for size in (height, width)
    )
    strip = nodes("Greater", nodes("Mul", tall, wide), LARGEST_RESIZED * side**2)
    upright = nodes("Greater", tall, wide)
    lying = nodes("Not", upright)
    lying_strip = nodes("And", strip, lying)
    fewer = _rows_first(nodes, nodes("Sub", height, tall), nodes("Sub", width, wide))
    return (
        _cropped(nodes, height, tall, side, nodes("And", strip, upright)),
        _cropped(nodes, width, wide, side, lying_strip),
        nodes("Or", lying_strip, nodes("And", nodes("Not", strip), fewer)),
    )


def _rows_first(nodes: Nodes, fewer_rows: Value, fewer_columns: Value) -> Value:
    if not pillow_may_resize_rows_first():
        return nodes("Identity", np.array(False))
    twice = nodes("Greater", fewer_rows, nodes("Mul", fewer_columns, 2))
    return nodes("And", nodes("Greater", fewer_rows, 0), twice)


def _cropped(nodes: Nodes, size: Value, resized: Value, side: int, before: Value) -> _Window:
    """As `pixels._cropped`."""
    skipped = nodes("Floor", nodes("Div", nodes("Sub", resized, side), 2))

    def bound(at: Value) -> Value:
        place = nodes("Div", nodes("Mul", at, size), resized)
        return nodes.cast(place, np.float32)

    start, stop = bound(skipped), bound(nodes("Add", skipped, side))
    length = nodes.cast(nodes("Sub", stop, start), np.float64)
    return _Window(
        nodes("Where", before, nodes.cast(start, np.float64), 0),
        nodes("Where", before, nodes("Div", length, side), nodes("Div", size, resized)),
        nodes("Where", before, 0, skipped),
    )


def _nearest(nodes: Nodes, window: _Window, size: Value, side: int) -> Value:
    """i64[side]: as `pixels._nearest`."""
    first = nodes("Add", window.start, nodes("Mul", window.scale, 0.5))
    count = nodes.cast(nodes("Add", window.skipped, side - 1), np.int64)
    count = nodes("Reshape", count, np.array([1]))
    steps = nodes("Expand", window.scale, count)
    first = nodes("Reshape", first, np.array([1]))
    added = nodes("CumSum", nodes("Concat", first, steps, axis=0), np.array(0))
    last = nodes("Slice", added, np.array([-side]), np.array([2**31]), np.array([0]))
    inside = nodes("Min", nodes("Floor", last), nodes("Sub", size, 1))
    return nodes.cast(inside, np.int64)


def _weights(nodes: Nodes, name: str, window: _Window, size: Value, side: int) -> Value:
    """f64[side, size]: the weights of `pixels.Filter.weights`, whole numbers."""
    wider = nodes("Max", window.scale, 1)
    support = nodes("Mul", wider, FILTERS[name].support)
    resized = nodes(
        "Add", nodes("Add", np.arange(side, dtype=np.float64)[:, None], window.skipped), 0.5
    )
    center = nodes("Add", window.start, nodes("Mul", resized, window.scale))
    first = nodes("Max", nodes("Floor", nodes("Add", nodes("Sub", center, support), 0.5)), 0)
    stop = nodes("Floor", nodes("Add", nodes("Add", center, support), 0.5))
    x = nodes("Range", 0, size, 1)
    distance = nodes("Mul", nodes("Add", nodes("Sub", x, center), 0.5), nodes("Div", 1, wider))
    inside = nodes("And", nodes("GreaterOrEqual", x, first), nodes("Less", x, stop))
    weights = nodes("Where", inside, _FILTERS[name](nodes, distance), 0)
    total = nodes("ReduceSum", weights, np.array([1]), keepdims=1)
    total = nodes("Where", nodes("Equal", total, 0), 1, total)
    scaled = nodes("Mul", nodes("Div", weights, total), 2**BITS)
    up, down = nodes("Floor", nodes("Add", scaled, 0.5)), nodes("Ceil", nodes("Sub", scaled, 0.5))
    return nodes("Where", nodes("Less", scaled, 0), down, up)


def _bytes(nodes: Nodes, sums: Value) -> Value:
    """Whole f64 numbers in [0, 255] of sums of bytes that have `BITS` bits of fraction."""
    rounded = nodes("Div", nodes("Add", sums, 2 ** (BITS - 1)), 2**BITS)
    return nodes("Min", nodes("Max", nodes("Floor", rounded), 0), 255)


def _box(nodes: Nodes, x: Value) -> Value:
    inside = nodes("And", nodes("Greater", x, -0.5), nodes("LessOrEqual", x, 0.5))
    return nodes("Where", inside, 1, 0)


def _bilinear(nodes: Nodes, x: Value) -> Value:
    return nodes("Max", nodes("Sub", 1, nodes("Abs", x)), 0)


def _hamming(nodes: Nodes, x: Value) -> Value:
    x = nodes("Abs", x)
    a, b = float(np.float32(0.54)), float(np.float32(0.46))  # Pillow has them in f32
    wave = nodes("Add", a, nodes("Mul", b, nodes("Cos", nodes("Mul", x, math.pi))))
    value = nodes("Mul", _sinc(nodes, x), wave)
    return nodes("Where", nodes("GreaterOrEqual", x, 1), 0, value)


def _bicubic(nodes: Nodes, x: Value) -> Value:
    x = nodes("Abs", x)
    near = nodes("Sub", nodes("Mul", x, 1.5), 2.5)
    near = nodes("Add", nodes("Mul", nodes("Mul", near, x), x), 1)
    far = nodes("Add", nodes("Mul", nodes("Sub", x, 5), x), 8)
    far = nodes("Mul", nodes("Sub", nodes("Mul", far, x), 4), -0.5)
    far = nodes("Where", nodes("Less", x, 2), far, 0)
    return nodes("Where", nodes("Less", x, 1), near, far)


def _lanczos(nodes: Nodes, x: Value) -> Value:
    inside = nodes("And", nodes("GreaterOrEqual", x, -3), nodes("Less", x, 3))
    value = nodes("Mul", _sinc(nodes, x), _sinc(nodes, nodes("Div", x, 3)))
    return nodes("Where", inside, value, 0)


def _sinc(nodes: Nodes, x: Value) -> Value:
    zero = nodes("Equal", x, 0)
    scaled = nodes("Where", zero, 1, nodes("Mul", x, math.pi))
    return nodes("Where", zero, 1, nodes("Div", nodes("Sin", scaled), scaled))


_FILTERS = {
    "box": _box,
    "bilinear": _bilinear,
    "hamming": _hamming,
    "bicubic": _bicubic,
    "lanczos": _lanczos,
}
