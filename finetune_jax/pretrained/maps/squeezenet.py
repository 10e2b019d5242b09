"""Name maps of SqueezeNet."""

from finetune_jax.pretrained.layout import CONV
from finetune_jax.pretrained.names import NameMap, Rule, layer, native

# Indices of the fire modules in torchvision's `features`; the other layers are poolings.
_PLACES = (3, 4, 5, 7, 8, 9, 10, 12)
_PARTS = (("squeeze", "conv1"), ("expand1x1", "conv2"), ("expand3x3", "conv3"))

_TORCHVISION = NameMap(
    "squeezenet",
    "torchvision",
    (
        *layer("features.0", "stem/conv1", CONV),
        *(
            rule
            for i, place in enumerate(_PLACES)
            for theirs, ours in _PARTS
            for rule in layer(f"features.{place}.{theirs}", f"block_{i}/{ours}", CONV)
        ),
        # The head is a 1x1 convolution.
        *layer("classifier.1", "head", "out in 1 1 -> in out"),
    ),
)


def _tensorflow(source: str, leaf: str, layout: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{source}_kernel", f"params/{leaf}/kernel", layout),
        Rule(f"{source}_Conv2D_bias", f"params/{leaf}/bias"),
    )


_NHWC = "out h w in -> h w in out"
# The TensorFlow Lite model in the test data of WebNN.
_WEBNN = NameMap(
    "squeezenet",
    "webnn",
    (
        *_tensorflow("conv1", "stem/conv1", _NHWC),
        *_tensorflow("fire{i+2}_squeeze", "block_{i}/conv1", _NHWC),
        *_tensorflow("fire{i+2}_e1x1", "block_{i}/conv2", _NHWC),
        *_tensorflow("fire{i+2}_e3x3", "block_{i}/conv3", _NHWC),
        *_tensorflow("conv10", "head", "out 1 1 in -> in out"),
    ),
)

MAPS = (native("squeezenet"), _TORCHVISION, _WEBNN)
