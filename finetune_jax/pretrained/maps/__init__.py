"""The tables of names, one file per model family."""

from finetune_jax.pretrained.maps import (
    bit,
    convnext,
    mobilenet_v2,
    resnet,
    resnet_cifar,
    text_encoder,
    vgg,
    vit,
)

NAME_MAPS = (
    *bit.MAPS,
    *convnext.MAPS,
    *mobilenet_v2.MAPS,
    *resnet.MAPS,
    *resnet_cifar.MAPS,
    *text_encoder.MAPS,
    *vgg.MAPS,
    *vit.MAPS,
)
