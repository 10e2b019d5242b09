"""A tiny Vision Transformer on digits: from scratch, or after configs/tasks/digits_mae.py.

Command:
  python -m finetune_jax.train --config=configs/tasks/digits_vit.py --workdir=DIR

Expected on the test split (seed 0, n=360, 95 % interval): from scratch accuracy 0.7694 [0.7232,
0.8100]; after the 15 epochs of digits_mae.py accuracy 0.4167 [0.3669, 0.4682], which is worse.
Beside it: 1-nearest neighbour in pixels: accuracy 0.9750. From experiments/task_results.py.
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
