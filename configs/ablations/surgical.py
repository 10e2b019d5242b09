"""Which part of a CIFAR-10 ResNet-20 to fine-tune to a corruption, under two BatchNorm policies.

Command (see experiments/surgical.py):
  python -m finetune_jax.ablate --config=configs/ablations/surgical.py --workdir=DIR

1,000 corrupted images for training (severity 5), 500 for validation, 2,000 for testing. The head is
the pretrained head. Each corruption has its own table.
"""

from finetune_jax.configs.ablations._materials import MATERIALS, resnet20

from finetune_jax.ablation.axes import chain, over, product
from finetune_jax.ablation.study import Study

CORRUPTIONS = ("gaussian_noise", "defocus_blur", "fog", "jpeg_compression")
FIRST = "stages('stem', 'layer1_.*')"


def get_config():
    config = resnet20()
    config.train.batch_size = 64
    config.train.epochs = 4.0
    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 1e-4
    config.eval.every_epochs = 4.0
    return config


def get_study():
    frozen = product(
        over("scheme", ["full", FIRST, "stages('layer2_.*')", "stages('layer3_.*')", "head"]),
        over("batch_norm", ["frozen_all"]),
    )
    # The statistics of every stage follow the batches, also where the stage is frozen.
    tracked = product(over("scheme", ["full", FIRST, "head"]), over("batch_norm", ["track"]))
    sources = [f"folder:{MATERIALS}/cifar10_c/{name}" for name in CORRUPTIONS]
    return Study(
        rows=product(over("data.source", sources), chain(frozen, tracked)),
        tune=over("optimizer.learning_rate", [3e-4, 1e-3, 3e-3]),
        search="grid(extend=1)",
        seeds=(0, 1, 2),
        tune_seeds=(0,),
    )
