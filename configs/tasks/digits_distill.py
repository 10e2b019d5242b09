"""Distillation: a ResNet-20 learns digits of 16 pixels from the outputs of a fine-tuned ResNet-20.

Commands:
  python -m finetune_jax.train --config=configs/quickstart.py --config.scheme=full \\
      --workdir=runs/teacher
  python -m finetune_jax.train --config=configs/tasks/digits_distill.py --workdir=DIR

Expected on the test split (seed 0, n=360, 95 % interval): accuracy 0.9750 [0.9532, 0.9868]; by
features accuracy 0.9833 [0.9641, 0.9923]; without a teacher accuracy 0.9833 [0.9641, 0.9923]; the
teacher accuracy 0.9889 [0.9718, 0.9957]: no difference that 360 digits can show. Beside it:
1-nearest neighbour in pixels: accuracy 0.9722. From experiments/task_results.py.
"""

from finetune_jax.config import default


def get_config():
    config = default()
    config.task.loss = "distill(teacher='runs/teacher', temperature=4, alpha=0.7)"
    config.scheme = "full"
    config.batch_norm = "track"
    config.model.name = "resnet20_cifar"
    config.data.source = "digits"
    config.data.image_size = 16
    config.train.batch_size = 64
    config.train.epochs = 10.0
    config.optimizer.learning_rate = 0.1
    config.optimizer.warmup_steps = 10
    config.eval.every_epochs = 5.0
    config.eval.batch_size = 120
    return config
