"""Three schemes on digits with the shipped CIFAR-10 ResNet-20, four rates each, three seeds.

Command:
  python -m finetune_jax.ablate --config=configs/ablations/quickstart.py --workdir=DIR
"""

from finetune_jax.ablation.axes import over
from finetune_jax.ablation.study import Study
from finetune_jax.configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.mesh.cpu_devices = 0
    config.log.tensorboard = False
    return config


def get_study():
    return Study(
        rows=over("scheme", ["linear_probe", "last_k(2)", "last_k(3)"]),
        tune=over("optimizer.learning_rate", [0.03, 0.1, 0.3, 1.0]),
        seeds=(0, 1, 2),
        tune_seeds=(0, 1, 2),
    )
