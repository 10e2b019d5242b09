"""big_vision's transfer table, on a pod: ViT-B/32 of AugReg on five data sets.

Zhai et al., github.com/google-research/big_vision, configs/transfer.py: mean and range of 5 runs.

Hazards: our random crops are taken from the central 384 of 448 pixels of an image, the original
crops from the whole image; timm's AugReg B/32 may come from another AugReg run than the weights of
the published table. As in the original, CIFAR trains on 98 % of the training split, ImageNet on
99 %, Pets and Flowers on 90 %.

Hardware: 8 accelerators, hours for ImageNet, minutes for Pets and Flowers.

Command:
  python -m experiments run big_vision_transfer --seeds=5
"""

from __future__ import annotations

from experiments.reproduction import Reproduction, RunTable, Target

# Published mean, and a tolerance of half of the published range plus 0.05 points.
_PUBLISHED = {
    "imagenet2012": (83.27, 0.15),
    "cifar10": (98.55, 0.15),
    "cifar100": (91.35, 0.35),
    "oxford_iiit_pet": (93.78, 0.30),
    "oxford_flowers102": (99.43, 0.10),
}

REPRODUCTION = Reproduction(
    name="big_vision_transfer",
    paper="big_vision, configs/transfer.py; Steiner et al. 2021, arXiv 2106.10270",
    claim="ViT-B/32 of AugReg transfers to five data sets with the published accuracy",
    targets=tuple(
        Target(name, value, "within", tolerance, "% accuracy", "docstring of configs/transfer.py")
        for name, (value, tolerance) in _PUBLISHED.items()
    ),
    hardware="8 accelerators",
    hazards="random crops of the central 384 of 448 pixels; maybe another AugReg run of B/32",
    command="python -m experiments run big_vision_transfer --seeds=5",
    needs="accelerators, TFDS data and weights of the hub",
    config="configs/pods/big_vision_transfer.py",
)

TABLE = RunTable(REPRODUCTION)
