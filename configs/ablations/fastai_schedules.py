"""Schedules of ULMFiT and fastai: gradual unfreezing, discriminative rates, and `fine_tune`.

Command (see experiments/fastai_schedules.py):
  python -m finetune_jax.ablate --config=configs/ablations/fastai_schedules.py --workdir=DIR

A CIFAR-10 ResNet-20 fine-tuned on 1,000 Bangla digits for 5 epochs in every arm; gradual schedules
have four groups. 500 digits for validation, 1,000 for testing.
"""

from finetune_jax.configs.ablations._materials import resnet20_on_bangla

from finetune_jax.ablation.axes import over
from finetune_jax.ablation.study import Study


def get_config():
    config = resnet20_on_bangla()
    config.train.epochs = 5.0
    config.optimizer.name = "adamw"
    return config


def get_study():
    schemes = [
        "full",
        "discriminative(2.6)",
        "gradual(groups=4)",
        "gradual(groups=4) + discriminative(2.6)",
        "fine_tune",
    ]
    return Study(
        rows=over("scheme", schemes),
        tune=over("optimizer.learning_rate", [1e-3, 3e-3, 1e-2]),
        search="grid(extend=0)",
        seeds=(0, 1, 2),
    )
