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

from finetune_jax.configs.tasks._digits import contrastive


def get_config():
    config = contrastive()
    config.task.name = "simclr"
    return config
