"""big_vision's transfer table: ViT-B/32, AugReg ImageNet-21k, to five data sets at 384 pixels.

Command (TFDS holds the data; the weights come from the hub):
  python -m finetune_jax.train --config=configs/pods/big_vision_transfer.py:cifar10 --workdir=DIR

Published, mean and range of 5 runs (big_vision, configs/transfer.py): imagenet2012 83.27 [83.22,
83.33], cifar10 98.55 [98.46, 98.60], cifar100 91.35 [91.09, 91.62], oxford_iiit_pet 93.78 [93.62,
94.00], oxford_flowers102 99.43 [99.42, 99.45]. Not run here.
"""

from finetune_jax.config import default

# Learning rate, steps, warm-up, share of the training split to train on, augmentation.
TASKS = {
    "imagenet2012": (0.03, 20_000, 500, 99, "inception"),
    "cifar10": (0.003, 10_000, 500, 98, "small"),
    "cifar100": (0.01, 10_000, 500, 98, "small"),
    "oxford_iiit_pet": (0.003, 500, 100, 90, "inception"),
    "oxford_flowers102": (0.003, 500, 100, 90, "inception"),
}

# The original crops 384 of 448 pixels, which a crop out of a padded image stands in for.
AUGMENT = {"inception": "random_resized_crop + flip", "small": "random_crop(pad=32) + flip"}


def get_config(name="cifar10"):
    rate, steps, warmup, share, crop = TASKS[name]
    config = default()
    config.model.name = "augreg_b32"
    config.model.dtype = "bfloat16"
    config.pretrained.path = "hf:timm/vit_base_patch32_224.augreg_in21k"
    config.pretrained.new_head = True
    config.pretrained.head_init = "zero"
    config.data.source = f"tfds:{name}"
    config.data.image_size = 384
    config.data.train, config.data.validation = f"train[:{share}%]", f"train[{share}%:]"
    config.data.test = "validation" if name == "imagenet2012" else "test"
    config.data.augment = AUGMENT[crop]
    config.data.workers = 8
    config.train.batch_size = 512
    config.train.steps = steps
    config.optimizer.learning_rate = rate
    config.optimizer.warmup_steps = warmup
    config.optimizer.clip_norm = 1.0
    return config
