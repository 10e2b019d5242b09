"""Name maps of the VGG networks. Each depth is a family, because torch numbers all layers."""

from finetune_jax.models.vgg import DEPTHS
from finetune_jax.pretrained.layout import CONV, DENSE
from finetune_jax.pretrained.maps.keras_layers import keras_layer
from finetune_jax.pretrained.names import COUNTER, NameMap, Rule, batch_norm, layer, native


def _features(depths: tuple[int, ...], norms: bool) -> tuple[Rule, ...]:
    """Rules of ``features.{n}``: convolutions, BatchNorms with `norms`; a pooling ends a block."""
    rules: list[Rule] = []
    position = 0
    for i, depth in enumerate(depths, 1):
        for j in range(1, depth + 1):
            rules += layer(f"features.{position}", f"block{i}/conv{j}", CONV)
            if norms:
                rules += batch_norm(f"features.{position + 1}", f"block{i}/norm{j}")
            position += 2 + norms
        position += 1
    return tuple(rules)


# torchvision.models.vgg. The inputs of its first dense layer are in the order channel, row, column.
_TORCHVISION_HEAD = (
    *layer("classifier.0", "fc1/dense", "out (c row column) -> (row column c) out"),
    *layer("classifier.3", "fc2/dense", DENSE),
    *layer("classifier.6", "head", DENSE),
)

# timm.models.vgg, whose dense layers are convolutions.
_TIMM_HEAD = (
    *layer("pre_logits.fc1", "fc1/dense", "out c row column -> (row column c) out"),
    *layer("pre_logits.fc2", "fc2/dense", "out in 1 1 -> in out"),
    *layer("head.fc", "head", DENSE),
)


def _torch(family: str, depths: tuple[int, ...], norms: bool) -> tuple[NameMap, ...]:
    return tuple(
        NameMap(family, origin, (*_features(depths, norms), *head), (COUNTER,) if norms else ())
        for origin, head in (("torchvision", _TORCHVISION_HEAD), ("timm", _TIMM_HEAD))
    )


def _keras(family: str) -> NameMap:
    """keras.applications.vgg16 and vgg19."""
    return NameMap(
        family,
        "keras",
        (
            *keras_layer("block{i}_conv{j}", "block{i}/conv{j}"),
            *keras_layer("fc{i}", "fc{i}/dense"),
            *keras_layer("predictions", "head"),
        ),
    )


MAPS = tuple(
    name_map
    for depth, depths in DEPTHS.items()
    for name_map in (
        native(f"vgg{depth}"), *_torch(f"vgg{depth}", depths, False), _keras(f"vgg{depth}"),
        native(f"vgg{depth}_bn"), *_torch(f"vgg{depth}_bn", depths, True),
    )
)  # fmt: skip
