"""Classification of texts by frozen MiniLM: sentiment, question types, intents of customers.

Commands (FINETUNE_JAX_DATA names the folder that holds text_sst2/, text_trec/, text_banking77/):
  python -m finetune_jax.train --config=configs/tasks/text_classification.py:sst2 --workdir=DIR
  python -m finetune_jax.train --config=configs/tasks/text_classification.py:trec --workdir=DIR
  python -m finetune_jax.train --config=configs/tasks/text_classification.py:banking77 --workdir=DIR

The encoder is frozen and runs once per text. For two of the three data sets the head is solved as
logistic regression, whose strength is chosen on validation.

Expected on the test split (95 % interval), beside logistic regression (C=10) and 20-nearest
neighbours on the same frozen features: sst2 accuracy 0.8116 [0.7930, 0.8289] (n=1821), 0.8133,
0.7512; trec 0.9120 [0.8839, 0.9338] (n=500), 0.8960, 0.7900; banking77 0.9218 [0.9117, 0.9307]
(n=3080), 0.9292, 0.8942. From experiments/task_results.py.
"""

from finetune_jax.configs.tasks._minilm import DATA, minilm

# Largest number of tokens of a text; longer texts are cut.
_TOKENS = {"sst2": 64, "trec": 32, "banking77": 48}


def get_config(name: str = "sst2"):
    if name not in _TOKENS:
        raise ValueError(f"unknown texts {name!r}; expected one of {', '.join(_TOKENS)}")
    config = minilm()
    config.scheme = "linear_probe"
    config.data.max_tokens = _TOKENS[name]
    if name == "sst2":
        folder = f"{DATA}/text_sst2"
        config.data.source = (
            f"csv:train={folder}/train.tsv,validation={folder}/dev.tsv,test={folder}/test.tsv"
        )
        config.data.csv.header = ("text", "label")
        config.data.csv.quoting = False
        config.data.label_kind = "class"
    else:
        config.data.train, config.data.validation = "train[:90%]", "train[90%:]"
    if name == "trec":
        folder = f"{DATA}/text_trec"
        config.data.source = f"csv:train={folder}/train_5500.label,test={folder}/TREC_10.label"
        # Lines such as "NUM:dist How far is it from Denver to Aspen ?".
        config.data.csv.sep, config.data.csv.extra = "space", "join"
        config.data.csv.header = ("label", "text")
        config.data.csv.quoting = False
        config.data.csv.encoding = "latin-1"
        config.data.label_until = ":"
    if name == "banking77":
        folder = f"{DATA}/text_banking77"
        config.data.source = f"csv:{folder}/train.csv,{folder}/test.csv"
        config.data.label_column = "category"
    if name == "banking77":  # with so many classes, training steps are faster than the solver
        config.train.epochs = 30.0
        config.optimizer.learning_rate = 1e-2
        config.eval.every_epochs = 5.0
    else:
        config.scheme = "linear_probe + phase(solve='lbfgs')"
    return config
