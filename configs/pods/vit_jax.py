"""vision_transformer's fine-tuning table: ViTs of ImageNet-21k at 384 pixels.

Command (TFDS holds the data; the weights come from the hub):
  python -m finetune_jax.train --config=configs/pods/vit_jax.py:b16,cifar10 --workdir=DIR

Published (README of google-research/vision_transformer, no dropout), CIFAR-10 / CIFAR-100 /
ImageNet: B/16 99.02 / 92.06 / 84.53, B/32 98.88 / 92.31 / 81.66, L/16 99.13 / 92.91 / 84.47, L/32
99.06 / 93.29 / 81.89. Those scores may leave out the last test batch. Not run here.
"""

from finetune_jax.config import default

WEIGHTS = {
    "b16": "hf:google/vit-base-patch16-224-in21k",
    "b32": "hf:google/vit-base-patch32-224-in21k",
    "l16": "hf:google/vit-large-patch16-224-in21k",
    "l32": "hf:google/vit-large-patch32-224-in21k",
}
DATA = ("cifar10", "cifar100", "imagenet2012")


def get_config(argument="b16,cifar10"):
    model, name = argument.split(",")
    if name not in DATA:
        raise ValueError(f"unknown data set {name!r}; expected one of {', '.join(DATA)}")
    config = default()
    config.model.name = f"vit_{model}"
    config.model.dtype = "bfloat16"
    config.pretrained.path = WEIGHTS[model]
    config.pretrained.new_head = True
    config.pretrained.head_init = "zero"
    config.data.source = f"tfds:{name}"
    config.data.image_size = 384
    share = 99 if name == "imagenet2012" else 98
    config.data.train, config.data.validation = f"train[:{share}%]", f"train[{share}%:]"
    config.data.test = "validation" if name == "imagenet2012" else "test"
    config.data.augment = "random_resized_crop + flip"
    config.data.workers = 8
    config.train.batch_size = 512
    config.train.steps = 20_000 if name == "imagenet2012" else 10_000
    config.optimizer.learning_rate = 0.03
    config.optimizer.warmup_steps = 500
    config.optimizer.clip_norm = 1.0
    return config
