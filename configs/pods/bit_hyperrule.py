"""BiT's HyperRule: everything that depends on the task follows from its size and its images.

Command (TFDS holds the data; the weights come from the hub):
  python -m finetune_jax.train --config=configs/pods/bit_hyperrule.py:r50x1,cifar10 --workdir=DIR

Kolesnikov et al. 2019 (arXiv 1912.11370). Published, CIFAR-10 / CIFAR-100 / ImageNet (README of
google-research/big_transfer): R50x1 97.3 / 86.4 / 80.68, R152x2 98.5 / 91.2 / 85.15. The CIFAR
figures in the README were reached with 128 images per step at a rate of 0.001. Not run (needs
accelerators, data and weights). Images are resized to a square without a crop. For training, the
original crops 128 of 160 and 480 of 512 pixels; this config crops from an image that is padded by
the same margin.
"""

from finetune_jax.configs.pods._argument import arguments, read_argument, tfds_images

from finetune_jax.config import default
from finetune_jax.errors import UserError

MODELS = ("r50x1", "r152x2")
# Training examples, side of the images in pixels (for ImageNet approximate), share to train on.
DATA = {
    "cifar10": (50_000, 32, 98),
    "cifar100": (50_000, 32, 98),
    "imagenet2012": (1_281_167, 400, 99),
}
ARGUMENTS = arguments(MODELS, DATA)


def hyperrule(examples, side):
    """Steps, their warm-up, pixels of (image, crop), and alpha of mixup (section 3.3).

    Args:
      examples: in the training split.
      side: of the original images, in pixels.
    """
    if examples < 1 or side < 1:
        raise UserError(f"expected examples and pixels, found {examples} and {side}")
    steps = 500 if examples < 20_000 else 10_000 if examples < 500_000 else 20_000
    sizes = (160, 128) if side < 96 else (512, 480)
    return steps, 100 if steps == 500 else 500, sizes, 0.0 if examples < 20_000 else 0.1


def staircase(steps):
    """A scheme that trains everything, at a rate divided by 10 three times.

    At 30, 60 and 90 % of the steps; of 500 at 200, 300 and 400.
    """
    lengths = (200, 100, 100, 100) if steps == 500 else (*[steps * 3 // 10] * 3, steps // 10)
    phases = [
        f"full + phase(steps={length}, lr={0.1**index:g}, schedule='constant')"
        for index, length in enumerate(lengths)
    ]
    return " >> ".join(phases)


def get_config(argument="r50x1,cifar10"):
    model, name = read_argument(argument, MODELS, DATA)
    examples, side, share = DATA[name]
    steps, warmup, (image, crop), alpha = hyperrule(examples, side)
    config = tfds_images(default(), name, share)
    config.scheme = staircase(steps)
    config.model.name = f"bit_{model}"
    config.model.dtype = "bfloat16"
    config.pretrained.path = f"hf:timm/resnetv2_{model[1:]}_bit.goog_in21k"
    config.pretrained.new_head = True
    config.pretrained.head_init = "zero"
    config.data.image_size = crop
    config.data.crop = 0.0
    config.data.interpolation = "bilinear"
    mixup = f" + mixup({alpha:g})" if alpha else ""
    config.data.augment = f"random_crop(pad={(image - crop) // 2}) + flip{mixup}"
    config.train.batch_size = 512
    config.train.steps = steps
    config.optimizer.learning_rate = 0.003
    config.optimizer.warmup_steps = warmup
    return config
