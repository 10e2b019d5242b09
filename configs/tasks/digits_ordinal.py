"""Ordinal regression: digits in their order, a mistake as large as its distance.

Command:
  python -m finetune_jax.train --config=configs/tasks/digits_ordinal.py --workdir=DIR

A toy: nothing in the picture of a 3 says that it is near a 4.

Expected on the test split (seed 0, n=360, 95 % interval): kappa 0.9929 [0.9840, 0.9991]. Beside
it: 1-nearest neighbour in pixels: kappa 0.9572. From experiments/task_results.py.
"""

from finetune_jax.config import default


def get_config():
    config = default()
    config.task.name = "ordinal"
    config.scheme = "full"
    config.pretrained.path = "finetune_jax/weights/resnet20_cifar10.safetensors"
    config.pretrained.new_head = True
    config.model.name = "resnet20_cifar"
    config.data.source = "digits"
    config.train.batch_size = 64
    config.train.epochs = 6.0
    config.optimizer.learning_rate = 0.05
    config.optimizer.warmup_steps = 10
    config.eval.every_epochs = 3.0
    config.eval.batch_size = 120
    return config
