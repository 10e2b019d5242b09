"""vision_transformer's fine-tuning table: ViTs of ImageNet-21k at 384 pixels.

Command (TFDS holds the data; the weights come from the hub):
  python -m finetune_jax.train --config=configs/pods/vit_jax.py:b16,cifar10 --workdir=DIR

Published (README of google-research/vision_transformer, no dropout), CIFAR-10 / CIFAR-100 /
ImageNet: B/16 99.02 / 92.06 / 84.53, B/32 98.88 / 92.31 / 81.66, L/16 99.13 / 92.91 / 84.47, L/32
99.06 / 93.29 / 81.89. Those scores may leave out the last test batch. Not run (needs accelerators,
data and weights). As in the original, the models have the tanh form of GELU, and images are resized
to a square without a crop.
"""

from finetune_jax.configs.pods._argument import arguments, read_argument, tfds_images

from finetune_jax.config import default

WEIGHTS = {
    "b16": "hf:google/vit-base-patch16-224-in21k",
    "b32": "hf:google/vit-base-patch32-224-in21k",
    "l16": "hf:google/vit-large-patch16-224-in21k",
    "l32": "hf:google/vit-large-patch32-224-in21k",
}
# Steps, and share of the training split to train on.
DATA = {"cifar10": (10_000, 98), "cifar100": (10_000, 98), "imagenet2012": (20_000, 99)}
ARGUMENTS = arguments(WEIGHTS, DATA)


def get_config(argument="b16,cifar10"):
    model, name = read_argument(argument, WEIGHTS, DATA)
    steps, share = DATA[name]
    config = tfds_images(default(), name, share)
    config.model.name = f"augreg_{model}"
    config.model.dtype = "bfloat16"
    config.pretrained.path = WEIGHTS[model]
    config.pretrained.new_head = True
    config.pretrained.head_init = "zero"
    config.data.image_size = 384
    config.data.crop = 0.0
    config.data.interpolation = "bilinear"
    config.data.augment = "random_resized_crop(scale=(0.05, 1.0)) + flip"
    config.train.batch_size = 512
    config.train.steps = steps
    config.optimizer.learning_rate = 0.03
    config.optimizer.warmup_steps = 500
    config.optimizer.clip_norm = 1.0
    return config
