"""Regression on pairs of sentences: STS-B's similarity from 0 to 5, both in one input of MiniLM.

Command (FINETUNE_JAX_DATA names the folder that holds text_stsb/):
  python -m finetune_jax.train --config=configs/tasks/sts_regression.py --workdir=DIR

The encoder was trained on single sentences, so that its frozen features of pairs are of little use.
Therefore the last two blocks train.

Expected on the test split (seed 0, n=1379, 95 % interval): spearman 0.7737 [0.7487, 0.7948], rmse
0.9348; beside it the cosine of single sentences without training: spearman 0.8203. From
experiments/task_results.py.
"""

from finetune_jax.configs.tasks._minilm import minilm
from finetune_jax.configs.tasks.sts_similarity import stsb


def get_config():
    config = stsb(minilm())
    config.task.name = "regression"
    config.scheme = "last_k(2)"
    config.data.max_tokens = 64
    config.train.epochs = 2.0
    config.optimizer.learning_rate = 3e-4
    return config
