"""Single-label classification: a linear probe of MobileNetV1 0.25 (ImageNet) on photographs.

Command (FINETUNE_JAX_DATA names the folder that holds flowers224/ and the weights):
  python -m finetune_jax.train --config=configs/tasks/flowers.py --workdir=DIR

Expected on the test split (seed 0, n=736, 95 % interval): accuracy 0.8668 [0.8404, 0.8895]. Beside
it: logistic regression (C=10) on the same frozen features: accuracy 0.8641; 20-nearest neighbours
on the same frozen features: accuracy 0.8247. From experiments/task_results.py.
"""

import os

from finetune_jax.config import default


def get_config():
    data = os.environ.get("FINETUNE_JAX_DATA", "data")
    config = default()
    config.scheme = "linear_probe"
    config.model.name = "mobilenetv1_025"
    config.pretrained.path = f"{data}/mobilenet_v1_025_imagenet/mobilenet_v1_0.25_224.h5"
    config.pretrained.new_head = True
    config.data.source = f"folder:{data}/flowers224"
    # A tenth of the training photographs is for validation; the published validation split is
    # for test.
    config.data.train, config.data.validation = "train[:90%]", "train[90%:]"
    config.data.test = "validation"
    config.train.batch_size = 64
    config.train.epochs = 30.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.eval.every_epochs = 5.0
    config.eval.batch_size = 64
    return config
