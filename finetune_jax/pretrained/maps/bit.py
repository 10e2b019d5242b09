"""Name maps of BiT's ResNets."""

from finetune_jax.pretrained.layout import CONV, DENSE
from finetune_jax.pretrained.names import NameMap, Rule, layer, native

_BLOCK = "layer{i+1}_block{j}"


def _npz() -> NameMap:
    """The ``.npz`` files of github.com/google-research/big_transfer, in TensorFlow's layouts."""
    unit, leaf = "resnet/block{i}/unit{j+1:02}", "layer{i}_block{j}"
    rules = [
        Rule("resnet/root_block/standardized_conv2d/kernel", "params/stem/conv/kernel"),
        Rule(f"{unit}/a/proj/standardized_conv2d/kernel", f"params/{leaf}/shortcut/conv/kernel"),
        Rule("resnet/group_norm/gamma", "params/norm/scale"),
        Rule("resnet/group_norm/beta", "params/norm/bias"),
        Rule("resnet/head/conv2d/kernel", "params/head/kernel", "1 1 in out -> in out"),
        Rule("resnet/head/conv2d/bias", "params/head/bias"),
    ]
    for k, letter in enumerate("abc", 1):
        rules += (
            Rule(f"{unit}/{letter}/standardized_conv2d/kernel", f"params/{leaf}/conv{k}/kernel"),
            Rule(f"{unit}/{letter}/group_norm/gamma", f"params/{leaf}/norm{k}/scale"),
            Rule(f"{unit}/{letter}/group_norm/beta", f"params/{leaf}/norm{k}/bias"),
        )
    return NameMap("bit", "npz", tuple(rules))


# timm.models.resnetv2, whose head is a convolution.
_TIMM = NameMap(
    "bit",
    "timm",
    (
        Rule("stem.conv.weight", "params/stem/conv/kernel", CONV),
        Rule("stages.{i}.blocks.{j}.conv{k}.weight", f"params/{_BLOCK}/conv{{k}}/kernel", CONV),
        *layer("stages.{i}.blocks.{j}.norm{k}", f"{_BLOCK}/norm{{k}}", weight="scale"),
        Rule(
            "stages.{i}.blocks.{j}.downsample.conv.weight",
            f"params/{_BLOCK}/shortcut/conv/kernel",
            CONV,
        ),
        *layer("norm", "norm", weight="scale"),
        *layer("head.fc", "head", "out in 1 1 -> in out"),
    ),
)

_LAYER = "bit.encoder.stages.{i}.layers.{j}"

# transformers.BitForImageClassification.
_TRANSFORMERS = NameMap(
    "bit",
    "transformers",
    (
        Rule("bit.embedder.convolution.weight", "params/stem/conv/kernel", CONV),
        Rule(f"{_LAYER}.conv{{k}}.weight", f"params/{_BLOCK}/conv{{k}}/kernel", CONV),
        *layer(f"{_LAYER}.norm{{k}}", f"{_BLOCK}/norm{{k}}", weight="scale"),
        Rule(f"{_LAYER}.downsample.conv.weight", f"params/{_BLOCK}/shortcut/conv/kernel", CONV),
        *layer("bit.norm", "norm", weight="scale"),
        *layer("classifier.1", "head", DENSE),
    ),
    prefix="bit.",
)

MAPS = (native("bit"), _npz(), _TIMM, _TRANSFORMERS)
