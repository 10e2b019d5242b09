"""Supervised contrastive pre-training: ResNet-20 from scratch on digits of 16 pixels.

Commands:
  python -m finetune_jax.train --config=configs/tasks/digits_supcon.py --workdir=runs/supcon
  python -m finetune_jax.train --config=configs/quickstart.py --config.scheme=linear_probe \\
      --config.pretrained.path=runs/supcon/artifact --config.data.image_size=16 --workdir=DIR

Expected on the test split (seed 0, n=360, 95 % interval): loss 3.9211, knn_accuracy 0.9778
[0.9568, 0.9887]; linear probe accuracy 0.9889 [0.9718, 0.9957], of the random network accuracy
0.6250 [0.5739, 0.6734]. Beside it: 1-nearest neighbour in pixels: accuracy 0.9722. From
experiments/task_results.py.
"""

from finetune_jax.config import default


def get_config():
    config = default()
    config.task.name = "supcon"
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
