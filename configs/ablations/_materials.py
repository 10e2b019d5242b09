"""Where the ablations find weights and data: see `experiments.materials`, which lays them out."""

import os

DATA = os.environ.get("FINETUNE_JAX_DATA", "data")
"""Weights and data as they come."""

MATERIALS = os.environ.get("FINETUNE_JAX_MATERIALS", "runs/materials")
"""What `experiments.materials` made of them."""

RESNET20 = f"{DATA}/resnet_cifar10/resnet20-12fca82f.th"
MOBILENET = f"{DATA}/mobilenet_v1_025_imagenet/mobilenet_v1_0.25_224.h5"


def bangla(config, train=1000):
    """Bangla handwritten digits as TFDS prepares them: 32 pixels, 10 classes, 1,000 to test on."""
    config.data.source = "tfds:cmaterdb/bangla"
    config.data.data_dir = f"{DATA}/tfds_prepared"
    config.data.train, config.data.validation = f"train[:{train}]", "train[-500:]"
    return config
