"""Similarity of pairs of images: do two digits look like the same one? Half of the pairs are.

Command:
  python -m finetune_jax.train --config=configs/tasks/digits_similarity.py --workdir=DIR

Each image is embedded by itself; the cosine of the two should be 1 or 0. Pairs of own images come
from a table: ``data.source="csv:PATH"`` with ``data.image_column="left,right"``.

Expected on the test split (seed 0, n=360, 95 % interval): auroc 0.9949 [0.9907, 0.9982], spearman
0.8572 [0.8470, 0.8626]. Beside it: cosine of the pixels: auroc 0.8762, spearman 0.6517. From
experiments/task_results.py.
"""

from finetune_jax.configs.tasks._digits import resnet20


def get_config():
    config = resnet20()
    config.task.name = "similarity"
    config.data.source = "digits:pairs"
    return config
