"""BiT's HyperRule, on a pod: the same rule for every task.

Kolesnikov et al. 2019 (arXiv 1912.11370); figures of BiT-M in the README of
github.com/google-research/big_transfer.

Hazards: the original crops 128 of 160 and 480 of 512 pixels, our config crops from a padded image;
the original trains on the whole training split, our config on 98 or 99 %; the original mixup draws
one share per batch, our mixup one share per image; the published CIFAR figures were reached with
128 images per step and a rate of 0.001, not with the rule.

Hardware: 8 accelerators, hours.

Command:
  python -m experiments run bit_hyperrule
"""

from __future__ import annotations

from experiments.reproduction import Reproduction, RunTable, Target

_DATA = ("cifar10", "cifar100", "imagenet2012")
_PUBLISHED = {"r50x1": (97.3, 86.4, 80.68), "r152x2": (98.5, 91.2, 85.15)}

REPRODUCTION = Reproduction(
    name="bit_hyperrule",
    paper="Kolesnikov et al. 2019, arXiv 1912.11370; big_transfer's README",
    claim="BiT-M reaches the published accuracy by one rule for every task",
    targets=tuple(
        Target(f"{model},{data}", value, "within", 0.6, "% accuracy", "README")
        for model, values in _PUBLISHED.items()
        for data, value in zip(_DATA, values, strict=True)
    ),
    hardware="8 accelerators",
    hazards="crops out of a padded image; published CIFAR figures with a smaller batch and rate",
    command="python -m experiments run bit_hyperrule",
    needs="accelerators, TFDS data and weights of the hub",
    config="configs/pods/bit_hyperrule.py",
)

TABLE = RunTable(REPRODUCTION)
