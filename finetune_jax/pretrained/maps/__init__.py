"""The tables of names, one file per model family."""

from finetune_jax.pretrained.maps import (
    bit,
    convnext,
    mixer,
    mobilenet_v1,
    mobilenet_v2,
    resnet,
    resnet8_mlperf,
    resnet_cifar,
    squeezenet,
    text_encoder,
    vgg,
    vit,
)

NAME_MAPS = (
    *bit.MAPS,
    *convnext.MAPS,
    *mixer.MAPS,
    *mobilenet_v1.MAPS,
    *mobilenet_v2.MAPS,
    *resnet.MAPS,
    *resnet8_mlperf.MAPS,
    *resnet_cifar.MAPS,
    *squeezenet.MAPS,
    *text_encoder.MAPS,
    *vgg.MAPS,
    *vit.MAPS,
)
