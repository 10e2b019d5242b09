"""Pretrained weights: file formats, name maps, and loading with a manifest."""

from finetune_jax.pretrained.formats import open_weights
from finetune_jax.pretrained.formats.weights import Weights
from finetune_jax.pretrained.load import load
from finetune_jax.pretrained.manifest import Manifest, ManifestRow
from finetune_jax.pretrained.maps import map_of
from finetune_jax.pretrained.names import NameMap
from finetune_jax.pretrained.prefixes import find_map
from finetune_jax.pretrained.save import save_as, save_native
from finetune_jax.pretrained.selection import Selection

__all__ = [
    "Manifest",
    "ManifestRow",
    "NameMap",
    "Selection",
    "Weights",
    "find_map",
    "load",
    "map_of",
    "open_weights",
    "save_as",
    "save_native",
]
