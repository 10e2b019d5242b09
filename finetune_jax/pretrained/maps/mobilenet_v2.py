"""Name maps of MobileNetV2."""

from finetune_jax.models.mobilenet_v2 import LAYOUT
from finetune_jax.pretrained.layout import CONV, DENSE
from finetune_jax.pretrained.maps.keras_layers import DEPTHWISE, keras_batch_norm, keras_layer
from finetune_jax.pretrained.names import COUNTER, NameMap, Rule, batch_norm, layer, native

# The convolutions of our blocks, and the norms that follow them.
_PARTS = (("conv1", "norm1"), ("depthwise", "norm2"), ("conv2", "norm3"))


def _conv(source: str, leaf: str) -> Rule:
    return Rule(f"{source}.weight", f"params/{leaf}/kernel", CONV)


def _unit(conv: str, norm: str, stage: str, index: int) -> tuple[Rule, ...]:
    """Rules of a torch convolution and BatchNorm, for `_PARTS[index]` of our stage."""
    ours = _PARTS[index]
    return (_conv(conv, f"{stage}/{ours[0]}"), *batch_norm(norm, f"{stage}/{ours[1]}"))


# Convolutions and norms of a block have consecutive numbers; the first block lacks the first pair.
_TORCHVISION = NameMap(
    "mobilenet_v2",
    "torchvision",
    (
        *_unit("features.0.0", "features.0.1", "stem", 0),
        *_unit("features.1.conv.0.0", "features.1.conv.0.1", "block_0", 1),
        *_unit("features.1.conv.1", "features.1.conv.2", "block_0", 2),
        *_unit("features.18.0", "features.18.1", "top", 0),
        *_unit("features.{i+1}.conv.0.0", "features.{i+1}.conv.0.1", "block_{i}", 0),
        *_unit("features.{i+1}.conv.1.0", "features.{i+1}.conv.1.1", "block_{i}", 1),
        *_unit("features.{i+1}.conv.2", "features.{i+1}.conv.3", "block_{i}", 2),
        *layer("classifier.1", "head", DENSE),
    ),
    ignore=(COUNTER,),
)

# timm numbers blocks by group and by position in the group.
_PLACES = [(run, i) for run, (_, _, count, _) in enumerate(LAYOUT) for i in range(count)]


def _timm_block(number: int, run: int, place: int) -> tuple[Rule, ...]:
    convs = ("conv_pw", "conv_dw", "conv_pwl") if number else ("conv_dw", "conv_pw")
    return tuple(
        rule
        for i, conv in enumerate(convs)
        for rule in _unit(
            f"blocks.{run}.{place}.{conv}", f"blocks.{run}.{place}.bn{i + 1}",
            f"block_{number}", i + 3 - len(convs),
        )
    )  # fmt: skip


_TIMM = NameMap(
    "mobilenet_v2",
    "timm",
    (
        *_unit("conv_stem", "bn1", "stem", 0),
        *(rule for n, place in enumerate(_PLACES) for rule in _timm_block(n, *place)),
        *_unit("conv_head", "bn2", "top", 0),
        *layer("classifier", "head", DENSE),
    ),
    ignore=(COUNTER,),
)


def _transformers_unit(source: str, stage: str, index: int) -> tuple[Rule, ...]:
    source = f"mobilenet_v2.{source}"
    return _unit(f"{source}.convolution", f"{source}.normalization", stage, index)


_TRANSFORMERS = NameMap(
    "mobilenet_v2",
    "transformers",
    (
        # The stem of transformers includes the first block.
        *_transformers_unit("conv_stem.first_conv", "stem", 0),
        *_transformers_unit("conv_stem.conv_3x3", "block_0", 1),
        *_transformers_unit("conv_stem.reduce_1x1", "block_0", 2),
        *_transformers_unit("layer.{i}.expand_1x1", "block_{i+1}", 0),
        *_transformers_unit("layer.{i}.conv_3x3", "block_{i+1}", 1),
        *_transformers_unit("layer.{i}.reduce_1x1", "block_{i+1}", 2),
        *_transformers_unit("conv_1x1", "top", 0),
        *layer("classifier", "head", DENSE),
    ),
    ignore=(COUNTER,),
    prefix="mobilenet_v2.",
)


def _keras_block(source: str, stage: str, *, expand: bool) -> tuple[Rule, ...]:
    depthwise = f"{source}_depthwise"
    return (
        *((Rule(f"{source}_expand/kernel", f"params/{stage}/conv1/kernel"),) * expand),
        *(keras_batch_norm(f"{source}_expand_BN", f"{stage}/norm1") * expand),
        Rule(f"{depthwise}/depthwise_kernel", f"params/{stage}/depthwise/kernel", DEPTHWISE),
        # The name in Keras 3.
        Rule(f"{depthwise}/kernel", f"params/{stage}/depthwise/kernel", DEPTHWISE),
        *keras_batch_norm(f"{depthwise}_BN", f"{stage}/norm2"),
        Rule(f"{source}_project/kernel", f"params/{stage}/conv2/kernel"),
        *keras_batch_norm(f"{source}_project_BN", f"{stage}/norm3"),
    )


_KERAS = NameMap(
    "mobilenet_v2",
    "keras",
    (
        Rule("Conv1/kernel", "params/stem/conv1/kernel"),
        *keras_batch_norm("bn_Conv1", "stem/norm1"),
        *_keras_block("expanded_conv", "block_0", expand=False),
        *_keras_block("block_{i}", "block_{i}", expand=True),
        Rule("Conv_1/kernel", "params/top/conv1/kernel"),
        *keras_batch_norm("Conv_1_bn", "top/norm1"),
        *keras_layer("predictions", "head"),
    ),
)


def _gluon_norm(source: str, leaf: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{source}_gamma", f"params/{leaf}/scale"),
        Rule(f"{source}_beta", f"params/{leaf}/bias"),
        Rule(f"{source}_running_mean", f"batch_stats/{leaf}/mean"),
        Rule(f"{source}_running_var", f"batch_stats/{leaf}/var"),
    )


def _gluon_unit(place: str, number: int, stage: str, index: int) -> tuple[Rule, ...]:
    conv, norm = _PARTS[index]
    source = f"mobilenetv20_features_{place}"
    return (
        Rule(f"{source}conv{number}_weight", f"params/{stage}/{conv}/kernel", CONV),
        *_gluon_norm(f"{source}batchnorm{number}", f"{stage}/{norm}"),
    )


_GLUON = NameMap(
    "mobilenet_v2",
    "gluon",
    (
        *_gluon_unit("", 0, "stem", 0),
        *(
            rule
            for i in range(3)
            for rule in _gluon_unit("linearbottleneck{i}_", i, "block_{i}", i)
        ),
        *_gluon_unit("", 1, "top", 0),
    ),
)

MAPS = (native("mobilenet_v2"), _TORCHVISION, _TIMM, _TRANSFORMERS, _KERAS, _GLUON)
