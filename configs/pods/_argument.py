"""Shared functions of the configs for pods: reading the argument, and holding out some of train."""

from finetune_jax.errors import UserError, nearest


def read_argument(argument, *choices):
    """The comma-separated names of an argument.

    Args:
      argument: such as ``b16,cifar10``.
      choices: the valid names of each place.

    Returns:
      A list of as many names as there are places.

    Raises:
      UserError: another number of names, or an unknown one.
    """
    names = argument.split(",")
    if len(names) != len(choices):
        example = ",".join(next(iter(valid)) for valid in choices)
        raise UserError(f"expected an argument such as {example!r}, found {argument!r}")
    for name, valid in zip(names, choices, strict=True):
        if name not in valid:
            raise UserError(f"unknown name {name!r} in {argument!r}.{nearest(name, valid)}")
    return names


def arguments(*choices):
    """All arguments that `read_argument` reads, in order."""
    found = [""]
    for valid in choices:
        found = [f"{text},{name}".removeprefix(",") for text in found for name in valid]
    return tuple(found)


def tfds_images(config, name, share):
    """A TFDS data set of images: `share` per cent of train to train on, the rest to choose on."""
    config.data.source = f"tfds:{name}"
    config.data.train, config.data.validation = f"train[:{share}%]", f"train[{share}%:]"
    # The labels of ImageNet's test split are secret.
    config.data.test = "validation" if name == "imagenet2012" else "test"
    config.data.workers = 8
    return config
