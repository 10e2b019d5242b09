"""A linear probe of a CIFAR-10 ResNet-20 on Bangla digits, under each BatchNorm policy.

Command (see experiments/batchnorm_leak.py):
  python -m finetune_jax.ablate --config=configs/ablations/batchnorm_leak.py --workdir=DIR

1,000 digits for training, 500 for validation, 1,000 for testing. The features are compared with
those of the pretrained model.
"""

from finetune_jax.configs.ablations._materials import resnet20_on_bangla

from finetune_jax.ablation.axes import over
from finetune_jax.ablation.study import Study


def get_config():
    config = resnet20_on_bangla()
    config.scheme = "linear_probe"
    config.train.epochs = 10.0
    config.eval.every_epochs = 10.0
    return config


def get_study():
    return Study(
        rows=over("batch_norm", ["frozen", "track", "reestimate"]),
        tune=over("optimizer.learning_rate", [0.03, 0.1, 0.3, 1.0]),
        seeds=(0, 1, 2),
        reference="batch_norm=frozen",
        drift=True,
    )
