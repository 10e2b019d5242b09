"""The tables of names, one file per model family."""

from finetune_jax.pretrained.maps import resnet_cifar, vit

NAME_MAPS = (*resnet_cifar.MAPS, *vit.MAPS)
