"""Where the ablations find weights and data: see `experiments.materials`, which lays them out."""

import os

from finetune_jax.config import default

DATA = os.environ.get("FINETUNE_JAX_DATA", "data")
"""Weights and data as they come."""

MATERIALS = os.environ.get("FINETUNE_JAX_MATERIALS", "runs/materials")
"""What `experiments.materials` made of them."""

RESNET20 = f"{DATA}/resnet_cifar10/resnet20-12fca82f.th"
MOBILENET = f"{DATA}/mobilenet_v1_025_imagenet/mobilenet_v1_0.25_224.h5"


def resnet20():
    """The published CIFAR-10 ResNet-20, with its head; scored once, when training has ended."""
    config = default()
    config.model.name = "resnet20_cifar"
    config.pretrained.path = RESNET20
    config.eval.every_epochs = 100.0
    config.eval.batch_size = 250
    config.mesh.cpu_devices = 2
    config.log.tensorboard = False
    return config


def resnet20_on_bangla():
    """That network with a new head, tuned to 1,000 Bangla handwritten digits.

    The digits are as TFDS prepares them: 32 pixels, 10 classes. 500 are chosen on, 1,000 test.
    """
    config = resnet20()
    config.pretrained.new_head = True
    config.data.source = "tfds:cmaterdb/bangla"
    config.data.data_dir = f"{DATA}/tfds_prepared"
    config.data.train, config.data.validation = "train[:1000]", "train[-500:]"
    config.train.batch_size = 50
    return config
