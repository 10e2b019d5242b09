"""Names of Keras variables, ``<layer>/<variable>``, equal for all three kinds of Keras files.

Keras 2 files and the ``.h5`` files of Keras 3 contain the names of variables. ``.weights.h5`` and
``.keras`` files number the variables in the order in which the layer's class creates them. This
module has the names in that order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from finetune_jax.pretrained.formats.limits import MAX_DEPTH

_KERNEL = ("kernel", "bias")
_CELL = ("kernel", "recurrent_kernel", "bias")
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
# By class in snake case, or by the attribute in which a layer stores an inner layer.
_VARIABLES: dict[str, tuple[str, ...]] = {
    "dense": _KERNEL,
    "einsum_dense": _KERNEL,
    **dict.fromkeys(_CONVOLUTIONS, _KERNEL),
    **dict.fromkeys((f"{name}_transpose" for name in _CONVOLUTIONS), _KERNEL),
    **dict.fromkeys(("query_dense", "key_dense", "value_dense", "output_dense"), _KERNEL),
    "depthwise_conv1d": ("depthwise_kernel", "bias"),
    "depthwise_conv2d": ("depthwise_kernel", "bias"),
    "separable_conv1d": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "separable_conv2d": ("depthwise_kernel", "pointwise_kernel", "bias"),
    **dict.fromkeys(("cell", "lstm_cell", "gru_cell", "simple_rnn_cell"), _CELL),
    "embedding": ("embeddings",),
    "p_re_lu": ("alpha",),
    "rms_normalization": ("scale",),
    "normalization": ("mean", "variance", "count"),
}
_MOVING = ("moving_mean", "moving_variance")
_SCALED = ("layer_normalization", "group_normalization", "batch_normalization")
# Names of Keras 1, such as `block1_conv1_W_1`. Its `running_std` is a variance.
_OLD = re.compile(
    r"_(W|b|kernel|bias|gamma|beta|running_mean|running_std|depthwise_kernel|pointwise_kernel)"
    r"(_\d+)?"
)
_OLD_NAMES = {
    "W": "kernel",
    "b": "bias",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",
}


def variable_names(
    kind: str, count: int, config: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """The names of the numbered variables of a layer.

    Args:
      kind: class of the layer in snake case, such as ``conv2d``.
      count: number of variables that the file has for the layer.
      config: settings of the layer, if known; they say whether a normalisation has gamma and beta.

    Returns:
      `count` names; the number as text for a variable whose name cannot be determined.
    """
    numbers = tuple(map(str, range(count)))
    if kind not in _SCALED:
        known = _VARIABLES.get(kind, ())
        return known[:count] if count <= len(known) else numbers
    moving = _MOVING if kind == "batch_normalization" else ()
    own = count - len(moving)
    affine: tuple[str, ...] = ("gamma", "beta")
    if config is not None:
        affine = tuple(
            name
            for name, switch in (("gamma", "scale"), ("beta", "center"))
            if config.get(switch, True) is True
        )
    if own == len(affine):
        return affine + moving
    return numbers[:own] + moving if 0 <= own < 2 else numbers


def snake_case(name: str) -> str:
    """A class name in the form of Keras' paths, such as ``p_re_lu`` for ``PReLU``."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


class LayerInfo:
    """One layer in a model's JSON, which is read as data and never turned into code.

    Attributes:
      kind: class of the layer in snake case.
      name: name of the layer.
      names: names of the models around the layer and of the layer, joined by '/'.
      config: settings of the layer.
    """

    def __init__(self, kind: str, name: str, names: str, config: Mapping[str, Any]) -> None:
        self.kind, self.name, self.names, self.config = kind, name, names, config


def layers_of(model: Any) -> dict[str, LayerInfo]:
    """The layers of a model's JSON, by the path of their group in a Keras 3 weight file.

    Entries that do not have the form of Keras' JSON are left out.
    """
    found: dict[str, LayerInfo] = {}

    def visit(entry: Any, group: str, names: str, depth: int) -> None:
        config = entry.get("config") if isinstance(entry, dict) else None
        if not isinstance(config, dict) or depth > MAX_DEPTH:
            return
        counts: dict[str, int] = {}
        children: list[tuple[str, Any]] = []
        layers = config.get("layers")
        for layer in layers if isinstance(layers, list) else ():
            kind = snake_case(str(layer.get("class_name", ""))) if isinstance(layer, dict) else ""
            count = counts.get(kind, 0)
            # A Sequential lists its input layer, which the weight file does not have.
            if kind == "input_layer" and entry.get("class_name") == "Sequential":
                continue
            counts[kind] = count + 1
            children.append((f"{group}layers/{kind}" + (f"_{count}" if count else ""), layer))
        children.append((f"{group}layer", config.get("layer")))  # the layer inside a wrapper
        for path, layer in children:
            inner = layer.get("config") if isinstance(layer, dict) else None
            if not isinstance(inner, dict):
                continue
            kind, name = snake_case(str(layer.get("class_name", ""))), str(inner.get("name", ""))
            found[path] = LayerInfo(kind, name, f"{names}{name}", inner)
            visit(layer, f"{path}/", f"{names}{name}/", depth + 1)

    visit(model, "", "", 0)
    return found


def named_path(layer: str, path: str) -> str:
    """The name of a variable, ``layer/…/variable``, from its path in a file with names.

    Args:
      layer: name of the top-level layer, such as ``block1_conv1``.
      path: path of the variable in the layer's group: ``block1_conv1/kernel:0``,
        ``sequential/out/bias``, or in Keras 1 ``block1_conv1_W_1:0``.
    """
    path = re.sub(r":\d+$", "", path)
    old = _OLD.fullmatch(path[len(layer) :]) if path.startswith(layer) else None
    if old:
        return f"{layer}/{_OLD_NAMES.get(old[1], old[1])}"
    parts = path.split("/")
    own = re.compile(re.escape(layer) + r"(_\d+)?")  # the suffix of a second graph in Keras 2
    # Models around the layer come first, and the variable comes last.
    at = next((i for i, part in enumerate(parts[:-1]) if own.fullmatch(part)), -1)
    return "/".join([layer, *parts[at + 1 :]])
