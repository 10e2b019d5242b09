"""Fine-tunes the shipped CIFAR-10 ResNet-20 to handwritten digits.

Commands:
  make quickstart
  python -m finetune_jax.train --config=configs/quickstart.py --workdir=DIR \\
      --config.scheme=linear_probe
  python -m finetune_jax.plan --config=configs/quickstart.py --config.scheme='last_k(3)'

`make quickstart` runs the four schemes of `QUICKSTART` one after another and prints them as one
table. Each learning rate is the best on validation among six rates, which are the same for every
scheme (`experiments/tune_quickstart.py`, one seed).
"""

from finetune_jax.config import default

# Scheme to learning rate.
QUICKSTART = {
    "linear_probe": 0.3,
    "last_k(3)": 0.1,
    "norm_only": 0.3,
    "full": 0.1,
}


def get_config():
    config = default()
    config.scheme = "last_k(3)"
    config.pretrained.path = "package:resnet20_cifar10"
    config.pretrained.new_head = True
    config.model.name = "resnet20_cifar"
    config.data.source = "digits"
    config.train.batch_size = 64
    config.train.epochs = 4.0
    config.optimizer.learning_rate = 0.1
    config.optimizer.warmup_steps = 10
    config.mesh.cpu_devices = 2
    config.eval.every_epochs = 4.0
    config.eval.batch_size = 120
    return config
