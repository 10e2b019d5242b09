"""Contrastive pre-training without labels: ResNet-20 from scratch on digits of 16 pixels.

Commands:
  python -m finetune_jax.train --config=configs/tasks/digits_simclr.py --workdir=runs/simclr
  python -m finetune_jax.train --config=configs/quickstart.py --config.scheme=linear_probe \\
      --config.pretrained.path=runs/simclr/artifact --config.data.image_size=16 --workdir=DIR

Expected on the test split (seed 0, n=360, 95 % interval): loss 4.4153, knn_accuracy 0.8778
[0.8399, 0.9077]; linear probe accuracy 0.9556 [0.9290, 0.9725], of the random network accuracy
0.6250 [0.5739, 0.6734]. Beside it: 1-nearest neighbour in pixels: accuracy 0.9722. From
experiments/task_results.py.
"""

from finetune_jax.config import default


def get_config():
    config = default()
    config.task.name = "simclr"
    config.scheme = "full"
    config.batch_norm = "track"
    config.model.name = "resnet20_cifar"
    config.data.source = "digits"
    config.data.image_size = 16
    config.data.augment = "random_resized_crop(scale=(0.5, 1)) + colour_jitter(0.4, 0.4)"
    config.train.batch_size = 128
    config.train.epochs = 15.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 20
    config.eval.every_epochs = 15.0
    config.eval.batch_size = 120
    return config
