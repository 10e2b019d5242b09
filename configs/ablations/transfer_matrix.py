"""Every kind of scheme on every small data set: accuracy and cost.

Command (see experiments/transfer_matrix.py):
  python -m finetune_jax.ablate --config=configs/ablations/transfer_matrix.py --workdir=DIR

MobileNetV1 0.25 (ImageNet) at 64 pixels; at most 500 images for training, 3 epochs. Each data set
has its own table; every scheme is tuned over three rates.
"""

from finetune_jax.configs.ablations._materials import DATA, MATERIALS, MOBILENET

from finetune_jax.ablation.axes import over, product
from finetune_jax.ablation.study import Study
from finetune_jax.config import default

SCHEMES = [
    "linear_probe",
    "last_k(1)",
    "last_k(4)",
    "first_k(3) + linear_probe",
    "norm_only",
    "bias_only",
    "lora(rank=4) + head",
    "ssf + head",
    "random_mask('norm_only')",
    "llrd(0.75)",
    "lp_ft",
    "full",
]


def get_config():
    config = default()
    config.model.name = "mobilenetv1_025"
    config.pretrained.path = MOBILENET
    config.pretrained.new_head = True
    config.data.image_size = 64
    config.train.batch_size = 50
    config.train.epochs = 3.0
    config.optimizer.name = "adamw"
    config.eval.every_epochs = 3.0
    config.eval.batch_size = 100
    config.log.tensorboard = False
    return config


def folder(name, train):
    """A folder of images, where the published validation split is the test split."""
    return {
        "data.source": f"folder:{MATERIALS}/{name}",
        "data.train": train,
        "data.validation": "train[80%:]",
        "data.test": "validation",
    }


TARGETS = [
    folder("flowers224", "train[:500]"),
    folder("hymenoptera224", "train[:80%]"),
    {
        "data.source": "tfds:cmaterdb/bangla",
        "data.data_dir": f"{DATA}/tfds_prepared",
        "data.train": "train[:500]",
        "data.validation": "train[-500:]",
    },
]


def get_study():
    return Study(
        rows=product(TARGETS, over("scheme", SCHEMES)),
        tune=over("optimizer.learning_rate", [1e-3, 3e-3, 1e-2]),
        search="grid(extend=0)",
        seeds=(0, 1, 2),
        reference="linear_probe",
    )
