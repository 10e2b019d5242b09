"""Multi-label classification: what is true of a handwritten digit (odd, prime, has a loop, …).

Command:
  python -m finetune_jax.train --config=configs/tasks/digits_multilabel.py --workdir=DIR

The labels follow from the digit, see finetune_jax/data/source_digits.py.
Expected and reference: see experiments/task_results.md.
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
