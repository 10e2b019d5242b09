"""Ablations whose wall-clock time `experiments.ablation_speed` compares with other ways of running.

  :grid           head; norm and head; last block: 4 rates x 3 seeds each, ViT-Ti/16 at 64 pixels,
                  640 digits, 10 epochs
  :blocks         head; last block; last two blocks: otherwise as :grid
  :lora_vit       LoRA, 4 rates x 2 seeds, the same model and data, 2 epochs
  :lora_resnet    LoRA, 4 rates x 2 seeds, ResNet-20 at 32 pixels, the same data, 2 epochs

The weights are random, because times do not depend on values. In :grid and :blocks every arm starts
from the same weight file.
"""

from finetune_jax.ablation.axes import over
from finetune_jax.ablation.study import Study
from finetune_jax.config import default

SCHEMES = {
    "grid": ["linear_probe", "stages('norm', 'head')", "last_k(1)"],
    "blocks": ["linear_probe", "last_k(1)", "last_k(2)"],
}


def get_config(case="grid"):
    config = default()
    config.model.name = "resnet20_cifar" if case == "lora_resnet" else "vit_ti16"
    config.data.image_size = 32 if case == "lora_resnet" else 64
    config.data.train = "train[:640]"
    config.data.validation = "validation[:128]"
    config.data.test = "test[:128]"
    config.train.batch_size = 64
    config.train.epochs = 10.0 if case in SCHEMES else 2.0
    config.eval.every_epochs = config.train.epochs
    config.eval.batch_size = 128
    config.optimizer.name = "sgd" if case in SCHEMES else "adamw"
    config.pretrained.new_head = case in SCHEMES
    config.log.tensorboard = False
    return config


def get_study(case="grid"):
    if case in SCHEMES:
        schemes, rates, seeds = SCHEMES[case], (0.003, 0.01, 0.03, 0.1), 3
    else:
        schemes, rates, seeds = ["lora(rank=4) + head"], (1e-4, 3e-4, 1e-3, 3e-3), 2
    return Study(
        rows=over("scheme", schemes),
        tune=over("optimizer.learning_rate", rates),
        search="grid(extend=0)",
        seeds=range(seeds),
        tune_seeds=range(seeds),
    )
