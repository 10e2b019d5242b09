"""Semantic segmentation: the digit of each pixel of ink, and the background.

Command:
  python -m finetune_jax.train --config=configs/tasks/digits_segmentation.py --workdir=DIR

The masks are made from the pictures by a threshold, see finetune_jax/data/source_digits.py.

Expected on the test split (seed 0, n=360, 95 % interval): mean_iou 0.7677 [0.7500, 0.7838]. Beside
it: the mask itself with the 1-nearest neighbour's digit: mean_iou 0.9531; background everywhere:
mean_iou 0.0615. From experiments/task_results.py.
"""

from finetune_jax.configs.tasks._digits import resnet20


def get_config():
    config = resnet20()
    config.task.name = "segmentation"
    config.data.source = "digits:masks"
    config.train.epochs = 12.0
    return config
