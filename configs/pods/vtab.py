"""VTAB-1k: 19 tasks of 1,000 examples, ViT-B/16 of ImageNet-21k, one scheme for all.

Command (TFDS holds the data; the weights come from the hub):
  python -m finetune_jax.train --config=configs/pods/vtab.py:cifar100,lora --workdir=DIR

Zhai et al. 2019 (arXiv 1910.04867); schemes and rates of NOAH (arXiv 2206.04673), VPT (arXiv
2203.12119) and SSF (arXiv 2210.08823): AdamW at 1e-3, 100 epochs, 64 images. Rates are chosen on
the last 200 of the 1,000 training examples. Published figures: experiments/vtab_1k.py. Not run
here. Two averages are in use, and differ: over 19 tasks, and over the means of the three groups.
"""

from finetune_jax.config import default

# TFDS name and column of the label, by task, in the three groups of the benchmark.
GROUPS = {
    "natural": {
        "cifar100": ("cifar100", "label"),
        "caltech101": ("caltech101", "label"),
        "dtd": ("dtd", "label"),
        "flowers": ("oxford_flowers102", "label"),
        "pets": ("oxford_iiit_pet", "label"),
        "svhn": ("svhn_cropped", "label"),
        "sun397": ("sun397", "label"),
    },
    "specialized": {
        "camelyon": ("patch_camelyon", "label"),
        "eurosat": ("eurosat/rgb", "label"),
        "resisc45": ("resisc45", "label"),
        "retinopathy": ("diabetic_retinopathy_detection/btgraham-300", "label"),
    },
    "structured": {
        "clevr_count": ("clevr", "label"),
        "clevr_distance": ("clevr", "label"),
        "dmlab": ("dmlab", "label"),
        "kitti": ("kitti", "label"),
        "dsprites_location": ("dsprites", "label_x_position"),
        "dsprites_orientation": ("dsprites", "label_orientation"),
        "smallnorb_azimuth": ("smallnorb", "label_azimuth"),
        "smallnorb_elevation": ("smallnorb", "label_elevation"),
    },
}
# Their labels are computed from boxes or objects, which TFDS does not hold as a column.
COMPUTED = ("clevr_count", "clevr_distance", "kitti")

SCHEMES = {
    "full": "full",
    "linear": "linear_probe",
    "bitfit": "bias_only",
    "adapter": "adaptformer(64) + head",
    "lora": "lora(rank=8, on='query|value') + head",
    "vpt_shallow": "vpt(50) + head",
    "vpt_deep": "vpt(10, deep=True) + head",
    "ssf": "ssf + head",
}


def averages(scores):
    """(mean over tasks, mean over the means of groups) of scores by task, all 19 of them."""
    means = []
    for tasks in GROUPS.values():
        means.append(sum(scores[task] for task in tasks) / len(tasks))
    return sum(scores.values()) / len(scores), sum(means) / len(means)


def get_config(argument="cifar100,lora"):
    task, scheme = argument.split(",")
    name, column = {k: v for tasks in GROUPS.values() for k, v in tasks.items()}[task]
    config = default()
    config.scheme = SCHEMES[scheme]
    config.model.name = "augreg_b16"
    config.pretrained.path = "hf:timm/vit_base_patch16_224.augreg_in21k"
    config.pretrained.new_head = True
    config.data.source = f"tfds:{name}"
    config.data.label_column = column
    # What VTAB trains on; the rates are chosen on the last 200 of it.
    config.data.train, config.data.validation = "train[:800]", "train[800:1000]"
    config.data.workers = 8
    config.train.batch_size = 64
    config.train.epochs = 100.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_steps = 125
    config.eval.every_epochs = 10.0
    return config
