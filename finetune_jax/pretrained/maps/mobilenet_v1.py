"""Name maps of MobileNet."""

from finetune_jax.models.mobilenet_v1 import LAYOUT
from finetune_jax.pretrained.layout import CONV, DENSE
from finetune_jax.pretrained.maps.keras_layers import DEPTHWISE, keras_batch_norm
from finetune_jax.pretrained.names import COUNTER, NameMap, Rule, batch_norm, layer, native

_KERAS = NameMap(
    "mobilenet_v1",
    "keras",
    (
        Rule("conv1/kernel", "params/stem/conv1/kernel"),
        *keras_batch_norm("conv1_bn", "stem/norm1"),
        Rule("conv_dw_{i+1}/depthwise_kernel", "params/block_{i}/depthwise/kernel", DEPTHWISE),
        # The name in Keras 3.
        Rule("conv_dw_{i+1}/kernel", "params/block_{i}/depthwise/kernel", DEPTHWISE),
        *keras_batch_norm("conv_dw_{i+1}_bn", "block_{i}/norm1"),
        Rule("conv_pw_{i+1}/kernel", "params/block_{i}/conv1/kernel"),
        *keras_batch_norm("conv_pw_{i+1}_bn", "block_{i}/norm2"),
        # The classifier is a 1x1 convolution over the pooled image.
        Rule("conv_preds/kernel", "params/head/kernel", "1 1 in out -> in out"),
        Rule("conv_preds/bias", "params/head/bias"),
    ),
)


def _unit(source: str, stage: str, conv: str, norm: str) -> tuple[Rule, ...]:
    """Rules of a convolution of transformers with the BatchNorm that follows it."""
    return (
        Rule(f"{source}.convolution.weight", f"params/{stage}/{conv}/kernel", CONV),
        *batch_norm(f"{source}.normalization", f"{stage}/{norm}"),
    )


# transformers.MobileNetV1ForImageClassification numbers depthwise and 1x1 convolutions in turn.
_LAYER = "mobilenet_v1.layer"
_TRANSFORMERS = NameMap(
    "mobilenet_v1",
    "transformers",
    (
        *_unit("mobilenet_v1.conv_stem", "stem", "conv1", "norm1"),
        *(
            rule
            for i in range(len(LAYOUT))
            for rule in (
                *_unit(f"{_LAYER}.{2 * i}", f"block_{i}", "depthwise", "norm1"),
                *_unit(f"{_LAYER}.{2 * i + 1}", f"block_{i}", "conv1", "norm2"),
            )
        ),
        *layer("classifier", "head", DENSE),
    ),
    ignore=(COUNTER,),
    prefix="mobilenet_v1.",
)

MAPS = (native("mobilenet_v1"), _KERAS, _TRANSFORMERS)
