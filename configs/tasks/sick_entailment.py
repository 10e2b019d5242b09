"""Classification of pairs of sentences: SICK, does one follow from the other or contradict it?

Command (FINETUNE_JAX_DATA names the folder that holds text_sick/):
  python -m finetune_jax.train --config=configs/tasks/sick_entailment.py --workdir=DIR

Both sentences are one input of MiniLM. MiniLM was trained on single sentences, so all leaves train.

Expected on the test split (seed 0, n=4927, 95 % interval): accuracy 0.8727 [0.8631, 0.8818]. Beside
it: logistic regression on |u-v| and u*v of frozen single sentences 0.7745; always the commonest
class 0.5669; published, InferSent (Conneau et al. 2017, arXiv 1705.02364) 0.863. From
experiments/task_results.py.
"""

from finetune_jax.configs.tasks._minilm import DATA, minilm


def get_config():
    config = minilm()
    folder = f"{DATA}/text_sick"
    config.data.source = (
        f"csv:train={folder}/SICK_train.txt,validation={folder}/SICK_trial.txt,"
        f"test={folder}/SICK_test_annotated.txt"
    )
    config.data.csv.sep, config.data.csv.quoting = "tab", False
    config.data.label_column, config.data.label_kind = "entailment_judgment", "class"
    config.data.text_columns = ("sentence_A", "sentence_B")
    config.data.max_tokens = 48
    config.scheme = "full"
    config.train.epochs = 3.0
    config.optimizer.learning_rate = 1e-4
    return config
