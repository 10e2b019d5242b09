"""Trains CIFAR-10 ResNet-20 from scratch; the shipped weights were trained with this config.

Command:
  python -m finetune_jax.train --config=configs/pretrain_resnet20_cifar10.py --workdir=DIR \\
      --config.data.data_dir=TFDS_DATA_DIR

Published: 91.25 % (He et al. 2015), 91.73 % for the akamaster release, both after about 164 to 200
epochs. The argument sets the epochs: ``--config=configs/pretrain_resnet20_cifar10.py:164``.

Expected on the test split (one seed, n=10000, 95 % interval): after 32 epochs 0.913 [0.907, 0.918],
after 2 epochs 0.7573 [0.7488, 0.7656].
"""

from finetune_jax.config import default


def get_config(epochs: str = "32"):
    """One linear decay from a short warm-up, as long as `epochs`."""
    config = default()
    config.scheme = "full"
    config.model.name = "resnet20_cifar"
    # This made the step a quarter faster on CPUs on which XLA fuses f32 convolutions badly.
    config.model.dtype = "bfloat16"
    config.data.source = "tfds:cifar10"
    # No checkpoint is selected, so no examples are held out; test is scored once, at the end.
    config.data.train = "train"
    config.data.validation = ""
    config.data.augment = "random_crop(pad=4) + flip"
    config.train.batch_size = 128
    config.train.epochs = float(epochs)
    config.optimizer.learning_rate = 0.2
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 3e-4
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 400
    config.optimizer.ema_decay = 0.998
    config.mesh.cpu_devices = 2
    config.eval.every_epochs = 1.0
    config.eval.batch_size = 500
    return config
