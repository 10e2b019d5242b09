"""Similarity of pairs of images: do two digits look like the same one? Half of the pairs are.

Command:
  python -m finetune_jax.train --config=configs/tasks/digits_similarity.py --workdir=DIR

Each image is embedded by itself; the cosine of the two should be 1 or 0. Pairs of own images come
from a table: ``data.source="csv:PATH"`` with ``data.image_column="left,right"``.

Expected on the test split: not run.
"""

from configs.tasks._digits import resnet20


def get_config():
    config = resnet20()
    config.task.name = "similarity"
    config.data.source = "digits:pairs"
    return config
