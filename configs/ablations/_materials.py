"""Paths of the weights and data of the ablations; `experiments.materials` prepares the data."""

import os

from finetune_jax.config import default

DATA = os.environ.get("FINETUNE_JAX_DATA", "data")
"""Folder of the original weights and data."""

MATERIALS = os.environ.get("FINETUNE_JAX_MATERIALS", "runs/materials")
"""Folder that `experiments.materials` writes."""

RESNET20 = f"{DATA}/resnet_cifar10/resnet20-12fca82f.th"
MOBILENET = f"{DATA}/mobilenet_v1_025_imagenet/mobilenet_v1_0.25_224.h5"


def resnet20():
    """A config of the published CIFAR-10 ResNet-20 with its head; scored only after training."""
    config = default()
    config.model.name = "resnet20_cifar"
    config.pretrained.path = RESNET20
    config.eval.every_epochs = 100.0
    config.eval.batch_size = 250
    config.mesh.cpu_devices = 2
    config.log.tensorboard = False
    return config


def resnet20_on_bangla():
    """A config that fine-tunes this ResNet-20, with a new head, on 1,000 handwritten Bangla digits.

    The digits are those of TFDS: 32 x 32 pixels, 10 classes. 500 digits are for validation and
    1,000 for testing.
    """
    config = resnet20()
    config.pretrained.new_head = True
    config.data.source = "tfds:cmaterdb/bangla"
    config.data.data_dir = f"{DATA}/tfds_prepared"
    config.data.train, config.data.validation = "train[:1000]", "train[-500:]"
    config.train.batch_size = 50
    return config
