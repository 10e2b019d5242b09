"""Linear probe, full fine-tuning and LP-FT, in distribution and out of distribution.

Command (see experiments/lp_ft.py):
  python -m finetune_jax.ablate --config=configs/ablations/lp_ft.py --workdir=DIR

A CIFAR-10 ResNet-20 fine-tuned on 1,000 Bangla digits; 500 digits for validation, 1,000 for
testing. The out-of-distribution data are the same test images under seven corruptions at severity
3. BatchNorm statistics stay those of the pretrained model in all arms, as in the published code.
"""

from finetune_jax.configs.ablations._materials import resnet20_on_bangla

from finetune_jax.ablation.axes import over
from finetune_jax.ablation.study import Study


def get_config():
    config = resnet20_on_bangla()
    config.batch_norm = "frozen_all"
    config.train.epochs = 8.0
    config.optimizer.warmup_steps = 10
    return config


def get_study():
    return Study(
        rows=over("scheme", ["full", "linear_probe", "lp_ft"]),
        tune=over("optimizer.learning_rate", [0.003, 0.01, 0.03, 0.1]),
        seeds=(0, 1, 2),
        corruptions="gaussian_noise,impulse_noise,defocus_blur,fog,contrast,pixelate,"
        "jpeg_compression",
        severity="3",
        drift=True,
    )
