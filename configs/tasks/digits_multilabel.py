"""Multi-label classification: properties of a handwritten digit (odd, prime, has a loop, …).

Command:
  python -m finetune_jax.train --config=configs/tasks/digits_multilabel.py --workdir=DIR

The labels follow from the digit, see finetune_jax/data/source_digits.py.

Expected on the test split (seed 0, n=360, 95 % interval): average_precision 0.9901 [0.9817,
0.9961]. Beside it: share among 5 nearest neighbours in pixels: average_precision 0.9912; always
the same: average_precision 0.4417. From experiments/task_results.py.
"""

from finetune_jax.configs.tasks._digits import resnet20


def get_config():
    config = resnet20()
    config.task.name = "multilabel"
    config.data.source = "digits:attributes"
    return config
