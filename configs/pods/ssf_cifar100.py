"""SSF's CIFAR-100 table: ViT-B/16 of ImageNet-21k, one scheme beside the others.

Command (TFDS holds the data; the weights come from the hub):
  python -m finetune_jax.train --config=configs/pods/ssf_cifar100.py:ssf --workdir=DIR

Lian et al. 2022 (arXiv 2210.08823): SSF 93.99 (best test epoch, with an average of the weights),
full 93.82, linear 88.70, bias 93.39, adapter 93.34, VPT-deep 93.17 (all but the first are recalled
from memory). Not run (needs an accelerator, data and weights). The rates of SSF, full and linear
are those of SSF's scripts, and the other rates are our choice. The augmentation follows the
defaults of SSF's train.py. This config holds out 2 % of the training split and reports the last
epoch.
"""

from finetune_jax.configs.pods._argument import read_argument, tfds_images
from finetune_jax.configs.pods.vtab import SCHEMES

from finetune_jax.config import default

RATES = {
    "ssf": 1e-3,
    "full": 5e-5,
    "linear": 1e-3,
    "bitfit": 1e-3,
    "adapter": 1e-3,
    "vpt_deep": 1e-3,
}
ARGUMENTS = tuple(RATES)


def get_config(argument="ssf"):
    (scheme,) = read_argument(argument, RATES)
    config = tfds_images(default(), "cifar100", 98)
    config.scheme = SCHEMES[scheme][0]
    config.model.name = "vit_b16"
    config.model.dtype = "bfloat16"
    config.pretrained.path = "hf:timm/vit_base_patch16_224.augreg_in21k"
    config.pretrained.new_head = True
    config.data.augment = (
        "random_resized_crop + flip + rand_augment(n=2, m=9) + random_erasing(p=0.25) "
        "+ mixup(0.8) + cutmix(1.0)"
    )
    config.task.label_smoothing = 0.1
    config.train.batch_size = 128
    config.train.epochs = 100.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = RATES[scheme]
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup_steps = round(10 * 49_000 / 128)
    config.optimizer.ema_decay = 0.99992
    config.eval.every_epochs = 10.0
    return config
