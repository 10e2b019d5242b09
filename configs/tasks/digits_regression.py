"""Regression: the value of a handwritten digit as a number.

Command:
  python -m finetune_jax.train --config=configs/tasks/digits_regression.py --workdir=DIR

This is a toy task: the picture of a 3 does not show that 3 is close to 4.

Expected on the test split (seed 0, n=360, 95 % interval): rmse 0.9092 [0.8108, 1.0121]. Beside it:
mean of 3 nearest neighbours in pixels: rmse 0.6854; mean of the training values: rmse 2.8645. From
experiments/task_results.py.
"""

from finetune_jax.configs.tasks._digits import resnet20


def get_config():
    config = resnet20()
    config.task.name = "regression"
    config.task.loss = "huber"
    return config
