"""Methods that keep fine-tuning near its start or in a flat minimum, with 100 to 1,000 examples.

Command (see experiments/anchors.py):
  python -m finetune_jax.ablate --config=configs/ablations/anchors.py --workdir=DIR

Full fine-tuning of a CIFAR-10 ResNet-20 on 100, 500 and 1,000 Bangla digits, with 40 steps of 50
images in every arm: plain, with L2-SP, with an average of the weights, or with sharpness-aware
minimisation (whose step costs as much as two steps). 500 digits for validation, 1,000 for testing.
"""

from finetune_jax.configs.ablations._materials import resnet20_on_bangla

from finetune_jax.ablation.axes import chain, over, product
from finetune_jax.ablation.study import Study


def get_config():
    config = resnet20_on_bangla()
    config.train.steps = 40
    return config


def get_study():
    anchors = chain(
        over("optimizer.l2_sp", [0.0, 0.01]),
        over("optimizer.ema_decay", [0.9]),
        over("optimizer.sam_rho", [0.05]),
    )
    return Study(
        rows=product(over("data.train", [f"train[:{n}]" for n in (100, 500, 1000)]), anchors),
        tune=over("optimizer.learning_rate", [0.01, 0.03]),
        search="grid(extend=0)",
        seeds=(0, 1, 2),
        reference="l2_sp=0.0",
    )
