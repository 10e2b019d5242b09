"""Name maps of the ResNets."""

from finetune_jax.pretrained.layout import CONV, DENSE
from finetune_jax.pretrained.maps.keras_layers import keras_batch_norm, keras_layer
from finetune_jax.pretrained.names import COUNTER, NameMap, Rule, batch_norm, layer, native

_DOWN = "layer{i}.{j}.downsample"

# torchvision.models.resnet, and timm.models.resnet, which has the same names.
_TORCHVISION = NameMap(
    "resnet",
    "torchvision",
    (
        Rule("conv1.weight", "params/stem/conv/kernel", CONV),
        *batch_norm("bn1", "stem/norm"),
        Rule("layer{i}.{j}.conv{k}.weight", "params/layer{i}_block{j}/conv{k}/kernel", CONV),
        *batch_norm("layer{i}.{j}.bn{k}", "layer{i}_block{j}/norm{k}"),
        Rule(f"{_DOWN}.0.weight", "params/layer{i}_block{j}/shortcut/conv/kernel", CONV),
        *batch_norm(f"{_DOWN}.1", "layer{i}_block{j}/shortcut/norm"),
        *layer("fc", "head", DENSE),
    ),
    ignore=(COUNTER,),
)

_LAYER, _BLOCK = "resnet.encoder.stages.{i}.layers.{j}", "layer{i+1}_block{j}"
_PARAMS = f"params/{_BLOCK}"

# transformers.ResNetForImageClassification.
_TRANSFORMERS = NameMap(
    "resnet",
    "transformers",
    (
        Rule("resnet.embedder.embedder.convolution.weight", "params/stem/conv/kernel", CONV),
        *batch_norm("resnet.embedder.embedder.normalization", "stem/norm"),
        Rule(f"{_LAYER}.layer.{{k}}.convolution.weight", f"{_PARAMS}/conv{{k+1}}/kernel", CONV),
        *batch_norm(f"{_LAYER}.layer.{{k}}.normalization", f"{_BLOCK}/norm{{k+1}}"),
        Rule(f"{_LAYER}.shortcut.convolution.weight", f"{_PARAMS}/shortcut/conv/kernel", CONV),
        *batch_norm(f"{_LAYER}.shortcut.normalization", f"{_BLOCK}/shortcut/norm"),
        *layer("classifier.1", "head", DENSE),
    ),
    ignore=(COUNTER,),
    prefix="resnet.",
)

_KERAS_BLOCK, _KERAS_LEAF = "conv{i+1}_block{j+1}", "layer{i}_block{j}"

# keras.applications.resnet, which numbers the groups of blocks from 2 on; conv1 is the stem.
_KERAS = NameMap(
    "resnet",
    "keras",
    (
        *keras_layer("conv1_conv", "stem/conv"),
        *keras_batch_norm("conv1_bn", "stem/norm"),
        *keras_layer(f"{_KERAS_BLOCK}_0_conv", f"{_KERAS_LEAF}/shortcut/conv"),
        *keras_batch_norm(f"{_KERAS_BLOCK}_0_bn", f"{_KERAS_LEAF}/shortcut/norm"),
        *keras_layer(f"{_KERAS_BLOCK}_{{k}}_conv", f"{_KERAS_LEAF}/conv{{k}}"),
        *keras_batch_norm(f"{_KERAS_BLOCK}_{{k}}_bn", f"{_KERAS_LEAF}/norm{{k}}"),
        *keras_layer("predictions", "head"),
    ),
)

MAPS = (native("resnet"), _TORCHVISION, _TRANSFORMERS, _KERAS)
