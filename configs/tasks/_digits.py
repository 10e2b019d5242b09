"""The settings that all configs of digits share."""

from finetune_jax.config import default


def resnet20():
    """The shipped CIFAR-10 ResNet-20 with a new head, all of it training on digits."""
    config = default()
    config.scheme = "full"
    config.pretrained.path = "package:resnet20_cifar10"
    config.pretrained.new_head = True
    config.model.name = "resnet20_cifar"
    config.data.source = "digits"
    config.train.batch_size = 64
    config.train.epochs = 6.0
    config.optimizer.learning_rate = 0.05
    config.optimizer.warmup_steps = 10
    config.eval.every_epochs = 3.0
    config.eval.batch_size = 120
    return config


def contrastive():
    """ResNet-20 from scratch on pairs of views of digits of 16 pixels."""
    config = default()
    config.scheme = "full"
    config.batch_norm = "track"
    config.model.name = "resnet20_cifar"
    config.data.source = "digits"
    config.data.image_size = 16
    config.data.augment = "random_resized_crop(scale=(0.5, 1)) + colour_jitter(0.4, 0.4)"
    config.train.batch_size = 128
    config.train.epochs = 15.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 20
    config.eval.every_epochs = 15.0
    config.eval.batch_size = 120
    return config
