"""Name maps of the CIFAR ResNets."""

from finetune_jax.pretrained.layout import CONV, DENSE
from finetune_jax.pretrained.names import COUNTER, NameMap, Rule, batch_norm, layer, native

# github.com/akamaster/pytorch_resnet_cifar10.
_AKAMASTER = NameMap(
    "resnet_cifar",
    "akamaster",
    (
        Rule("conv1.weight", "params/stem/conv/kernel", CONV),
        *batch_norm("bn1", "stem/norm"),
        Rule("layer{i}.{j}.conv{k}.weight", "params/layer{i}_block{j}/conv{k}/kernel", CONV),
        *batch_norm("layer{i}.{j}.bn{k}", "layer{i}_block{j}/norm{k}"),
        *layer("linear", "head", DENSE),
    ),
    ignore=(COUNTER,),
)

MAPS = (native("resnet_cifar"), _AKAMASTER)
