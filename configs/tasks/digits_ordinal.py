"""Ordinal regression: digits in their order; an error is the distance to the right digit.

Command:
  python -m finetune_jax.train --config=configs/tasks/digits_ordinal.py --workdir=DIR

This is a toy task: the picture of a 3 does not show that 3 is close to 4.

Expected on the test split (seed 0, n=360, 95 % interval): kappa 0.9929 [0.9840, 0.9991]. Beside
it: 1-nearest neighbour in pixels: kappa 0.9572. From experiments/task_results.py.
"""

from finetune_jax.configs.tasks._digits import resnet20


def get_config():
    config = resnet20()
    config.task.name = "ordinal"
    return config
