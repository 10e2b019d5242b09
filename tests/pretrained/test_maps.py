"""Which name maps are imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from finetune_jax.models import MODULE_OF_FAMILY
from finetune_jax.models.registry import FAMILY_MODULES
from finetune_jax.pretrained.maps import all_maps

# Modules that several families share, and additional modules of one family.
HELPERS = {"keras_layers": FAMILY_MODULES, "vit_flax": ("vit",)}

_IMPORTED = """
import sys
from finetune_jax.pretrained.maps import maps_of
print(len(maps_of(sys.argv[1])))
print(*(m.rpartition(".")[2] for m in sys.modules if m.startswith("finetune_jax.pretrained.maps.")))
"""


@pytest.mark.parametrize("family", ["resnet_cifar", "mobilenet_v1", "vit", "other"])
def test_the_maps_of_one_family_alone_are_imported(family):
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTED, family], capture_output=True, text=True, check=True
    )
    count, *rest = done.stdout.splitlines()
    imported = set(rest[0].split()) if rest else set()
    expected = {MODULE_OF_FAMILY[family]} if family in MODULE_OF_FAMILY else set()
    assert int(count) >= 1
    assert {m for m in imported if m not in HELPERS} == expected
    assert all(expected & set(HELPERS[m]) for m in imported & HELPERS.keys())


def test_every_family_has_its_maps_and_every_map_a_family():
    assert {m.family for m in all_maps()} == MODULE_OF_FAMILY.keys()
    assert set(MODULE_OF_FAMILY.values()) == set(FAMILY_MODULES)
