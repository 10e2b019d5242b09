"""Scores a CIFAR-10 ResNet weight file on the CIFAR-10 test set, without training.

Command:
  python -m finetune_jax.evaluate --config=configs/eval_cifar10.py:32 \\
      --config.pretrained.path=FILE --config.data.data_dir=TFDS_DATA_DIR

The argument is the depth. Published error of the akamaster release (ImageNet mean and std):
ResNet-20 8.27 %, ResNet-32 7.37 %.
"""

from finetune_jax.config import default


def get_config(depth: str = "20"):
    """The model and preprocessing those weights were trained with."""
    config = default()
    config.model.name = f"resnet{depth}_cifar"
    config.data.source = "tfds:cifar10"
    config.data.train = "train[:98%]"
    config.data.validation = "train[98%:]"
    config.eval.batch_size = 500
    return config
