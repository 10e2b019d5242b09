"""Multi-label classification: what is true of a handwritten digit (odd, prime, has a loop, …).

Command:
  python -m finetune_jax.train --config=configs/tasks/digits_multilabel.py --workdir=DIR

The labels follow from the digit, see finetune_jax/data/source_digits.py.

Expected on the test split (seed 0, n=360, 95 % interval): average_precision 0.9901 [0.9817,
0.9961]. Beside it: share among 5 nearest neighbours in pixels: average_precision 0.9912; always
the same: average_precision 0.4417. From experiments/task_results.py.
"""

from finetune_jax.config import default


def get_config():
    config = default()
    config.task.name = "multilabel"
    config.scheme = "full"
    config.pretrained.path = "finetune_jax/weights/resnet20_cifar10.safetensors"
    config.pretrained.new_head = True
    config.model.name = "resnet20_cifar"
    config.data.source = "digits:attributes"
    config.train.batch_size = 64
    config.train.epochs = 6.0
    config.optimizer.learning_rate = 0.05
    config.optimizer.warmup_steps = 10
    config.eval.every_epochs = 3.0
    config.eval.batch_size = 120
    return config
