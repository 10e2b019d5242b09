"""A tiny Vision Transformer on digits: from scratch, or after configs/tasks/digits_mae.py.

Command:
  python -m finetune_jax.train --config=configs/tasks/digits_vit.py --workdir=DIR

Expected and reference: see experiments/task_results.md.
"""

from finetune_jax.config import default


def get_config():
    config = default()
    config.scheme = "full"
    config.model.name = "vit_ti8"
    config.pretrained.new_head = True
    config.data.source = "digits"
    config.data.image_size = 32
    config.train.batch_size = 64
    config.train.epochs = 4.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 20
    config.eval.every_epochs = 4.0
    config.eval.batch_size = 120
    return config
