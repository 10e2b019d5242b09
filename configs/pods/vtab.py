"""VTAB-1k: tasks of 1,000 examples, ViT-B/16 of ImageNet-21k, one scheme for all.

Commands (TFDS holds the data; the weights come from the hub):
  python -m finetune_jax.train --config=configs/pods/vtab.py:cifar100,lora,final --workdir=DIR
  python -m finetune_jax.train --config=configs/pods/vtab.py:cifar100,lora,tune --workdir=DIR

Zhai et al. 2019 (arXiv 1910.04867): ``tune`` trains on 800 examples and scores 200, ``final``
trains on all 1,000, without validation, and scores the test split. Published figures are in
experiments/vtab_1k.py. Not run (needs an accelerator, data and weights).

NOAH's setting (arXiv 2206.04673): AdamW, 64 images, 100 epochs, 10 of warm-up, decay 1e-4, rate
1e-3, images resized to 224 x 224 pixels without a crop, no augmentation. The rates, decays, epochs
and batch sizes of SSF by task are those of SSF's scripts (arXiv 2210.08823), with 10 epochs of
warm-up. VPT (arXiv 2203.12119) tuned full fine-tuning, the probe and prompts per task. The rates
here are single points of VPT's grid, so tune them before you call a figure of VPT not reproduced.
"""

from finetune_jax.configs.pods._argument import arguments, read_argument

from finetune_jax.config import default

# By task, in the three groups of the benchmark: TFDS name, column of the label, and the splits of
# task_adaptation: 800 examples to train on, 200 to choose on, and the test split.
GROUPS = {
    "natural": {
        "cifar100": ("cifar100", "label", "train[:800]", "train[45000:45200]", "test"),
        "caltech101": ("caltech101", "label", "train[:800]", "train[2753:2953]", "test"),
        "dtd": ("dtd", "label", "train[:800]", "validation[:200]", "test"),
        "flowers": ("oxford_flowers102", "label", "train[:800]", "validation[:200]", "test"),
        "pets": ("oxford_iiit_pet", "label", "train[:800]", "train[2944:3144]", "test"),
        "svhn": ("svhn_cropped", "label", "train[:800]", "train[65931:66131]", "test"),
        "sun397": ("sun397/tfds", "label", "train[:800]", "validation[:200]", "test"),
    },
    "specialized": {
        "camelyon": ("patch_camelyon", "label", "train[:800]", "validation[:200]", "test"),
        "eurosat": ("eurosat/rgb", "label", "train[:800]", "train[16200:16400]", "train[80%:]"),
        "resisc45": ("resisc45", "label", "train[:800]", "train[18900:19100]", "train[80%:]"),
        "retinopathy": (
            "diabetic_retinopathy_detection/btgraham-300", "label", "train[:800]",
            "validation[:200]", "test",
        ),
    },
    "structured": {
        "clevr_count": None,
        "clevr_distance": None,
        "dmlab": ("dmlab", "label", "train[:800]", "validation[:200]", "test"),
        "kitti": None,
        "dsprites_location": None,
        "dsprites_orientation": None,
        "smallnorb_azimuth": (
            "smallnorb", "label_azimuth", "train[:800]", "test[:200]", "test[50%:]",
        ),
        "smallnorb_elevation": (
            "smallnorb", "label_elevation", "train[:800]", "test[:200]", "test[50%:]",
        ),
    },
}  # fmt: skip
# The tasks with a config. The labels of the other tasks are computed from objects, boxes, or
# pairs of neighbouring values, for which TFDS has no column.
TASKS = {k: v for tasks in GROUPS.values() for k, v in tasks.items() if v}

# Scheme, rate and weight decay.
SCHEMES = {
    "full": ("full", 1e-4, 1e-4),
    "linear": ("linear_probe", 1e-2, 1e-4),
    "bitfit": ("bias_only", 1e-3, 1e-4),
    "adapter": ("adaptformer(8) + head", 1e-3, 1e-4),
    "lora": ("lora(rank=8, on='query|value') + head", 1e-3, 1e-4),
    "vpt_shallow": ("vpt(50) + head", 1e-2, 1e-4),
    "vpt_deep": ("vpt(50, deep=True) + head", 1e-3, 1e-4),
    "ssf": ("ssf + head", 5e-3, 5e-5),
}
# Rate, weight decay, epochs and images per step.
SSF = {
    "cifar100": (5e-3, 5e-5, 200.0, 128),
    "caltech101": (1e-3, 5e-2, 250.0, 128),
    "dtd": (5e-3, 5e-5, 100.0, 64),
    "flowers": (5e-3, 5e-5, 100.0, 64),
    "pets": (5e-3, 5e-5, 250.0, 128),
    "svhn": (1e-2, 5e-5, 250.0, 32),
    "sun397": (5e-3, 5e-5, 200.0, 128),
    "camelyon": (5e-3, 5e-5, 100.0, 64),
    "eurosat": (3e-3, 5e-2, 100.0, 64),
    "resisc45": (2e-3, 5e-5, 250.0, 32),
    "retinopathy": (5e-3, 5e-5, 100.0, 64),
    "dmlab": (5e-3, 5e-5, 100.0, 64),
    "smallnorb_azimuth": (2e-2, 5e-5, 200.0, 128),
    "smallnorb_elevation": (5e-3, 5e-2, 250.0, 128),
}
ARGUMENTS = arguments(TASKS, SCHEMES, ("final", "tune"))


def get_config(argument="cifar100,lora,final"):
    task, scheme, stage = read_argument(argument, TASKS, SCHEMES, ("final", "tune"))
    name, column, train, validation, test = TASKS[task]
    text, rate, decay = SCHEMES[scheme]
    epochs, batch = 100.0, 64
    config = default()
    if scheme == "ssf":
        rate, decay, epochs, batch = SSF[task]
        # SSF starts from AugReg, the other schemes from the first release; all use exact GELU.
        config.pretrained.path = "hf:timm/vit_base_patch16_224.augreg_in21k"
    else:
        config.pretrained.path = "hf:google/vit-base-patch16-224-in21k"
    config.scheme = text
    config.model.name = "vit_b16"
    config.pretrained.new_head = True
    config.data.source = f"tfds:{name}"
    config.data.label_column = column
    config.data.crop = 0.0
    config.data.workers = 8
    if stage == "tune":
        config.data.train, config.data.validation, config.data.test = train, validation, ""
        examples = 800
    else:
        config.data.train, config.data.validation, config.data.test = (
            f"{train}+{validation}", "", test,
        )  # fmt: skip
        config.checkpoint.keep_best = 0
        examples = 1000
    config.train.batch_size = batch
    config.train.epochs = epochs
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = rate
    config.optimizer.weight_decay = decay
    config.optimizer.warmup_steps = round(10 * examples / batch)
    config.eval.every_epochs = 10.0
    return config
