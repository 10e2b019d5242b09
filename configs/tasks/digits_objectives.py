"""Losses of classification in one setting: ResNet-20 on digits, and all leaves train.

Command, where NAME is one of smoothing, mixup, cutmix, focal, balanced:
  python -m finetune_jax.train --config=configs/tasks/digits_objectives.py:NAME --workdir=DIR

Each variant sets one key of the config. The losses and their sources are in
finetune_jax/tasks/objectives.py, mixup and CutMix in finetune_jax/data/augment/mix.py. The ten
classes are equally frequent, so `balanced` gives them equal weights here.

Expected on the test split (seed 0, n=360, 95 % interval of each within 0.96 to 1.00): accuracy
0.9917 smoothing, 0.9806 mixup, 0.9861 cutmix, 0.9861 focal, 0.9889 balanced: no difference that 360
digits can show. Beside it: 1-nearest neighbour in pixels 0.9722. From experiments/task_results.py.
"""

from finetune_jax.configs.tasks._digits import resnet20

_OBJECTIVES = {
    "smoothing": ("task.label_smoothing", 0.1),
    "mixup": ("data.augment", "mixup(0.2)"),
    "cutmix": ("data.augment", "cutmix(1)"),
    "focal": ("task.loss", "focal(gamma=2)"),
    "balanced": ("task.loss", "class_balanced(beta=0.99)"),
}


def get_config(name: str = "smoothing"):
    if name not in _OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; expected one of {', '.join(_OBJECTIVES)}")
    config = resnet20()
    key, value = _OBJECTIVES[name]
    config.update_from_flattened_dict({key: value})
    return config
