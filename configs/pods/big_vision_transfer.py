"""big_vision's transfer table: ViT-B/32, AugReg ImageNet-21k, to five data sets at 384 pixels.

Command (TFDS holds the data; the weights come from the hub):
  python -m finetune_jax.train --config=configs/pods/big_vision_transfer.py:cifar10 --workdir=DIR

Published, mean and range of 5 runs (big_vision, configs/transfer.py): imagenet2012 83.27 [83.22,
83.33], cifar10 98.55 [98.46, 98.60], cifar100 91.35 [91.09, 91.62], oxford_iiit_pet 93.78 [93.62,
94.00], oxford_flowers102 99.43 [99.42, 99.45]. Not run (needs accelerators, data and weights).

The release starts from gs://vit_models/augreg/B_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-
sd_0.0.npz. This config starts from timm's AugReg B/32, which may come from another AugReg run.
"""

from finetune_jax.configs.pods._argument import read_argument, tfds_images

from finetune_jax.config import default

# Learning rate, steps, warm-up, share of the training split to train on, crop.
TASKS = {
    "imagenet2012": (0.03, 20_000, 500, 99, "inception"),
    "cifar10": (0.003, 10_000, 500, 98, "small"),
    "cifar100": (0.01, 10_000, 500, 98, "small"),
    "oxford_iiit_pet": (0.003, 500, 100, 90, "inception"),
    "oxford_flowers102": (0.003, 500, 100, 90, "inception"),
}
ARGUMENTS = tuple(TASKS)

# The original takes random crops of the whole image; ours are crops of evaluation's central crop.
AUGMENT = {
    "inception": "random_resized_crop(scale=(0.05, 1.0)) + flip",
    "small": "random_crop(pad=32) + flip",
}


def get_config(argument="cifar10"):
    (name,) = read_argument(argument, TASKS)
    rate, steps, warmup, share, crop = TASKS[name]
    config = tfds_images(default(), name, share)
    config.model.name = "augreg_b32"
    config.model.dtype = "bfloat16"
    config.pretrained.path = "hf:timm/vit_base_patch32_224.augreg_in21k"
    config.pretrained.new_head = True
    config.pretrained.head_init = "zero"
    config.data.image_size = 384
    config.data.crop = 384 / 448
    # The original resizes by "area", which repeats pixels if an image is enlarged by whole factors.
    config.data.interpolation = "nearest" if crop == "small" else "bilinear"
    config.data.augment = AUGMENT[crop]
    config.train.batch_size = 512
    config.train.steps = steps
    config.optimizer.learning_rate = rate
    config.optimizer.warmup_steps = warmup
    config.optimizer.clip_norm = 1.0
    return config
