"""Which part of a CIFAR-10 ResNet-20 to tune to a corruption, and what BatchNorm does meanwhile.

Command (see experiments/surgical.py):
  python -m finetune_jax.ablate --config=configs/ablations/surgical.py --workdir=DIR

1,000 corrupted images to train on (severity 5), 500 to choose on, 2,000 to test on; the head stays
the pretrained one. A table per corruption.
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
    # Statistics that follow the batches, in every stage, whatever trains.
    tracked = product(over("scheme", ["full", FIRST, "head"]), over("batch_norm", ["track"]))
    sources = [f"folder:{MATERIALS}/cifar10_c/{name}" for name in CORRUPTIONS]
    return Study(
        rows=product(over("data.source", sources), chain(frozen, tracked)),
        tune=over("optimizer.learning_rate", [3e-4, 1e-3, 3e-3]),
        search="grid(extend=1)",
        seeds=(0, 1, 2),
        tune_seeds=(0,),
    )
