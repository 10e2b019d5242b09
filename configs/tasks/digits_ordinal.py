"""Ordinal regression: digits in their order, a mistake as large as its distance.

Command:
  python -m finetune_jax.train --config=configs/tasks/digits_ordinal.py --workdir=DIR

A toy: nothing in the picture of a 3 says that it is near a 4.

Expected on the test split (seed 0, n=360, 95 % interval): kappa 0.9929 [0.9840, 0.9991]. Beside
it: 1-nearest neighbour in pixels: kappa 0.9572. From experiments/task_results.py.
"""

from finetune_jax.configs.tasks._digits import resnet20


def get_config():
    config = resnet20()
    config.task.name = "ordinal"
    return config
