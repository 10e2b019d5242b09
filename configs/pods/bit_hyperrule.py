"""BiT's HyperRule: everything that depends on the task follows from its size and its images.

Command (TFDS holds the data; the weights come from the hub):
  python -m finetune_jax.train --config=configs/pods/bit_hyperrule.py:r50x1,cifar10 --workdir=DIR

Kolesnikov et al. 2019 (arXiv 1912.11370). Published, CIFAR-10 / CIFAR-100 / ImageNet (README of
google-research/big_transfer): R50x1 97.3 / 86.4 / 80.68, R152x2 98.5 / 91.2 / 85.15. The original
divides the rate by 10 at 30, 60 and 90 % of the steps, where this config has a cosine. Not run
here.
"""

from finetune_jax.config import default

# Training examples, and side of the images in pixels.
DATA = {"cifar10": (50_000, 32), "cifar100": (50_000, 32), "imagenet2012": (1_281_167, 469)}


def hyperrule(examples, side):
    """Steps, crop in pixels, and whether mixup is used (section 3.3).

    Args:
      examples: in the training split.
      side: of the original images, in pixels.
    """
    steps = 500 if examples < 20_000 else 10_000 if examples < 500_000 else 20_000
    return steps, 128 if side < 96 else 480, examples >= 20_000


def get_config(argument="r50x1,cifar10"):
    model, name = argument.split(",")
    examples, side = DATA[name]
    steps, crop, mixup = hyperrule(examples, side)
    config = default()
    config.model.name = f"bit_{model}"
    config.model.dtype = "bfloat16"
    config.pretrained.path = f"hf:timm/resnetv2_{model[1:]}_bit.goog_in21k"
    config.pretrained.new_head = True
    config.pretrained.head_init = "zero"
    config.data.source = f"tfds:{name}"
    config.data.image_size = crop
    share = 99 if name == "imagenet2012" else 98
    config.data.train, config.data.validation = f"train[:{share}%]", f"train[{share}%:]"
    config.data.test = "validation" if name == "imagenet2012" else "test"
    config.data.augment = f"random_crop(pad={crop // 8}) + flip" + " + mixup(0.1)" * mixup
    config.data.workers = 8
    config.train.batch_size = 512
    config.train.steps = steps
    config.optimizer.learning_rate = 0.003
    config.optimizer.warmup_steps = 500 if steps > 500 else 100
    return config
