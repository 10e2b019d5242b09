"""Similarity of pairs of images: do two images show the same digit? Half of the pairs do.

Command:
  python -m finetune_jax.train --config=configs/tasks/digits_similarity.py --workdir=DIR

Each image is embedded separately; the cosine of the two embeddings should be 1 or 0. Your own pairs
of images come from a table: ``data.source="csv:PATH"`` with ``data.image_column="left,right"``.

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
