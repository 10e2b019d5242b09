"""Similarity of pairs of sentences: STS-B, each sentence embedded by itself, cosine against score.

Commands (FINETUNE_JAX_DATA names the folder that holds text_stsb/):
  python -m finetune_jax.train --config=configs/tasks/sts_similarity.py --workdir=DIR
  python -m finetune_jax.evaluate --config=configs/tasks/sts_similarity.py   (zero-shot)

The head starts as the identity. Published zero-shot Spearman correlation of this encoder: 82.03
(MTEB, STSBenchmark).

Expected on the test split (seed 0, n=1379, 95 % interval): zero-shot spearman 0.8203 [0.7976,
0.8401]; after training 0.8390 [0.8185, 0.8575]. From experiments/task_results.py.
"""

from finetune_jax.configs.tasks._minilm import DATA, minilm


def stsb(config):
    """Adds the data to a config."""
    folder = f"{DATA}/text_stsb"
    config.data.source = (
        f"csv:train={folder}/sts-train.csv,validation={folder}/sts-dev.csv,"
        f"test={folder}/sts-test.csv"
    )
    config.data.csv.sep, config.data.csv.quoting = "tab", False
    # Some lines name the sentences' sources in two further fields.
    config.data.csv.header = ("genre", "file", "year", "number", "label", "one", "other")
    config.data.csv.extra = "drop"
    config.data.label_kind = "number"
    config.data.text_columns = ("one", "other")
    return config


def get_config():
    config = stsb(minilm())
    config.task.name = "similarity"
    config.scheme = "last_k(1)"
    config.data.max_tokens = 64
    config.train.epochs = 1.0
    config.optimizer.learning_rate = 1e-4
    return config
