"""Masked pre-training without labels: a tiny Vision Transformer on digits, 12 of 16 patches hidden.

Commands:
  python -m finetune_jax.train --config=configs/tasks/digits_mae.py --workdir=runs/mae
  python -m finetune_jax.train --config=configs/tasks/digits_vit.py --workdir=DIR \\
      --config.pretrained.path=runs/mae/artifact

Expected on the test split (seed 0, n=360, 95 % interval): loss 0.5908 [0.5764, 0.6053]. Beside it:
mean of each place in training: loss 0.6424. So the model has learned little in 15 epochs;
digits_vit.py has the effect on fine-tuning. From experiments/task_results.py.
"""

from finetune_jax.config import default


def get_config():
    config = default()
    config.task.name = "mae"
    config.task.loss = "masked(mask=0.75, width=96, depth=1)"
    config.scheme = "full"
    config.model.name = "vit_ti8"
    config.data.source = "digits"
    config.data.image_size = 32
    config.train.batch_size = 64
    config.train.epochs = 15.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup_steps = 40
    config.eval.every_epochs = 15.0
    config.eval.batch_size = 120
    return config
