"""Name maps of MLPerf Tiny's ResNet-8."""

from finetune_jax.pretrained.maps.keras_layers import keras_batch_norm, keras_layer
from finetune_jax.pretrained.names import NameMap, native

# Keras numbers layers in the order of creation: a shortcut follows its block's two convolutions.
_CONVS = (
    "stem/conv", "block_0/conv1", "block_0/conv2", "block_1/conv1", "block_1/conv2",
    "block_1/shortcut", "block_2/conv1", "block_2/conv2", "block_2/shortcut",
)  # fmt: skip
_NORMS = (
    "stem/norm", "block_0/norm1", "block_0/norm2", "block_1/norm1", "block_1/norm2",
    "block_2/norm1", "block_2/norm2",
)  # fmt: skip


def _numbered(kind: str, number: int) -> str:
    return f"{kind}_{number}" if number else kind


_KERAS = NameMap(
    "resnet8_mlperf",
    "keras",
    (
        *(r for i, leaf in enumerate(_CONVS) for r in keras_layer(_numbered("conv2d", i), leaf)),
        *(
            rule
            for i, leaf in enumerate(_NORMS)
            for rule in keras_batch_norm(_numbered("batch_normalization", i), leaf)
        ),
        *keras_layer("dense", "head"),
    ),
)

MAPS = (native("resnet8_mlperf"), _KERAS)
