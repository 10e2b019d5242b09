"""Name maps of MobileNet."""

from finetune_jax.pretrained.maps.keras_layers import DEPTHWISE, keras_batch_norm
from finetune_jax.pretrained.names import NameMap, Rule, native

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

MAPS = (native("mobilenet_v1"), _KERAS)
