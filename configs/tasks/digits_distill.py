"""Distillation: ResNet-8 learns digits from scratch and from the answers of a fine-tuned ResNet-20.

Commands:
  python -m finetune_jax.train --config=configs/quickstart.py --config.scheme=full \\
      --workdir=runs/teacher
  python -m finetune_jax.train --config=configs/tasks/digits_distill.py --workdir=DIR

Expected and reference: see experiments/task_results.md.
"""

from finetune_jax.config import default


def get_config():
    config = default()
    config.task.loss = "distill(teacher='runs/teacher', temperature=4, alpha=0.7)"
    config.scheme = "full"
    config.batch_norm = "track"
    config.model.name = "resnet8_mlperf"
    config.data.source = "digits"
    config.train.batch_size = 64
    config.train.epochs = 6.0
    config.optimizer.learning_rate = 0.1
    config.optimizer.warmup_steps = 10
    config.eval.every_epochs = 3.0
    config.eval.batch_size = 120
    return config
