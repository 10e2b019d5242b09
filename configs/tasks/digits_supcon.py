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

from finetune_jax.configs.tasks._digits import contrastive


def get_config():
    config = contrastive()
    config.task.name = "supcon"
    return config
