"""SSF's CIFAR-100 table: ViT-B/16 of ImageNet-21k, one scheme beside the others.

Command (TFDS holds the data; the weights come from the hub):
  python -m finetune_jax.train --config=configs/pods/ssf_cifar100.py:ssf --workdir=DIR

Lian et al. 2022 (arXiv 2210.08823): SSF 93.99 (best test epoch, with an average of the weights),
full 93.82, linear 88.70, bias 93.39, adapter 93.34, VPT-deep 93.17 (all but the first recalled).
Not run here; this config chooses on validation and keeps the last epoch.
"""

from configs.pods.vtab import SCHEMES
from configs.pods.vtab import get_config as vtab


def get_config(scheme="ssf"):
    config = vtab(f"cifar100,{scheme}")
    assert scheme in SCHEMES
    config.data.train, config.data.validation = "train[:98%]", "train[98%:]"
    config.data.augment = "random_resized_crop + flip"
    config.train.batch_size = 128
    config.optimizer.learning_rate = 1e-2 if scheme == "ssf" else 1e-3
    config.optimizer.ema_decay = 0.99992
    return config
