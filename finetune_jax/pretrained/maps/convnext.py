"""Name maps of ConvNeXt, V1 and V2.

Each version is a family for each form of the dense layers in timm's files: in small sizes, timm's
dense layers are 1x1 convolutions (``_1x1``). All other origins have one form.
"""

from finetune_jax.pretrained.layout import CONV, DENSE
from finetune_jax.pretrained.names import NameMap, Rule, layer, native

_BLOCK = "stage{i}_block{j}"


def _timm(family: str, dense: str) -> NameMap:
    """timm.models.convnext."""
    block = "stages.{i}.blocks.{j}"
    return NameMap(
        family,
        "timm",
        (
            *layer("stem.0", "stem/conv", CONV),
            *layer("stem.1", "stem/norm", weight="scale"),
            *layer("stages.{i}.downsample.0", "stage{i}_block0/downsample/norm", weight="scale"),
            *layer("stages.{i}.downsample.1", "stage{i}_block0/downsample/conv", CONV),
            *layer(f"{block}.conv_dw", f"{_BLOCK}/depthwise", CONV),
            *layer(f"{block}.norm", f"{_BLOCK}/norm", weight="scale"),
            *layer(f"{block}.mlp.fc1", f"{_BLOCK}/mlp_in", dense),
            *layer(f"{block}.mlp.fc2", f"{_BLOCK}/mlp_out", dense),
            Rule(f"{block}.gamma", f"params/{_BLOCK}/layer_scale/scale"),
            Rule(f"{block}.mlp.grn.weight", f"params/{_BLOCK}/response/gamma"),
            Rule(f"{block}.mlp.grn.bias", f"params/{_BLOCK}/response/beta"),
            *layer("head.norm", "norm", weight="scale"),
            *layer("head.fc", "head", DENSE),
        ),
    )


def _facebook(family: str) -> NameMap:
    """github.com/facebookresearch/ConvNeXt and ConvNeXt-V2."""
    block = "stages.{i}.{j}"
    return NameMap(
        family,
        "facebook",
        (
            # These rules come first: layer 0 is the stem, whose norm follows its convolution.
            *layer("downsample_layers.0.0", "stem/conv", CONV),
            *layer("downsample_layers.0.1", "stem/norm", weight="scale"),
            *layer("downsample_layers.{i}.0", "stage{i}_block0/downsample/norm", weight="scale"),
            *layer("downsample_layers.{i}.1", "stage{i}_block0/downsample/conv", CONV),
            *layer(f"{block}.dwconv", f"{_BLOCK}/depthwise", CONV),
            *layer(f"{block}.norm", f"{_BLOCK}/norm", weight="scale"),
            *layer(f"{block}.pwconv1", f"{_BLOCK}/mlp_in", DENSE),
            *layer(f"{block}.pwconv2", f"{_BLOCK}/mlp_out", DENSE),
            Rule(f"{block}.gamma", f"params/{_BLOCK}/layer_scale/scale"),
            Rule(f"{block}.grn.gamma", f"params/{_BLOCK}/response/gamma", "1 1 1 c -> c"),
            Rule(f"{block}.grn.beta", f"params/{_BLOCK}/response/beta", "1 1 1 c -> c"),
            *layer("norm", "norm", weight="scale"),
            *layer("head", "head", DENSE),
        ),
    )


def _transformers(family: str, model: str) -> NameMap:
    """transformers.ConvNextForImageClassification and ConvNextV2ForImageClassification."""
    stage = f"{model}.encoder.stages.{{i}}"
    block = f"{stage}.layers.{{j}}"
    return NameMap(
        family,
        "transformers",
        (
            *layer(f"{model}.embeddings.patch_embeddings", "stem/conv", CONV),
            *layer(f"{model}.embeddings.layernorm", "stem/norm", weight="scale"),
            *layer(
                f"{stage}.downsampling_layer.0", "stage{i}_block0/downsample/norm", weight="scale"
            ),
            *layer(f"{stage}.downsampling_layer.1", "stage{i}_block0/downsample/conv", CONV),
            *layer(f"{block}.dwconv", f"{_BLOCK}/depthwise", CONV),
            *layer(f"{block}.layernorm", f"{_BLOCK}/norm", weight="scale"),
            *layer(f"{block}.pwconv1", f"{_BLOCK}/mlp_in", DENSE),
            *layer(f"{block}.pwconv2", f"{_BLOCK}/mlp_out", DENSE),
            Rule(f"{block}.layer_scale_parameter", f"params/{_BLOCK}/layer_scale/scale"),
            Rule(f"{block}.grn.weight", f"params/{_BLOCK}/response/gamma", "1 1 1 c -> c"),
            Rule(f"{block}.grn.bias", f"params/{_BLOCK}/response/beta", "1 1 1 c -> c"),
            *layer(f"{model}.layernorm", "norm", weight="scale"),
            *layer("classifier", "head", DENSE),
        ),
        prefix=f"{model}.",
    )


def _torchvision(family: str) -> NameMap:
    """torchvision.models.convnext, whose ``features`` alternate downsampling and blocks."""
    rules = [
        *layer("features.0.0", "stem/conv", CONV),
        *layer("features.0.1", "stem/norm", weight="scale"),
    ]
    for i in range(4):
        source, leaf = f"features.{2 * i + 1}.{{j}}", f"stage{i}_block{{j}}"
        rules += [
            *layer(f"{source}.block.0", f"{leaf}/depthwise", CONV),
            *layer(f"{source}.block.2", f"{leaf}/norm", weight="scale"),
            *layer(f"{source}.block.3", f"{leaf}/mlp_in", DENSE),
            *layer(f"{source}.block.5", f"{leaf}/mlp_out", DENSE),
            Rule(f"{source}.layer_scale", f"params/{leaf}/layer_scale/scale", "c 1 1 -> c"),
        ]
        if i:
            down, first = f"features.{2 * i}", f"stage{i}_block0/downsample"
            rules += layer(f"{down}.0", f"{first}/norm", weight="scale")
            rules += layer(f"{down}.1", f"{first}/conv", CONV)
    rules += layer("classifier.0", "norm", weight="scale")
    rules += layer("classifier.2", "head", DENSE)
    return NameMap(family, "torchvision", tuple(rules))


MAPS = tuple(
    name_map
    for version in ("convnext", "convnextv2")
    for form, dense in (("", DENSE), ("_1x1", "out in 1 1 -> in out"))
    for name_map in (
        native(version + form),
        _timm(version + form, dense),
        _facebook(version + form),
        _transformers(version + form, version),
        *([_torchvision(version)] if (version, form) == ("convnext", "") else []),
    )
)
