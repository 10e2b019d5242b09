"""Parameters beside a frozen model: low rank, scale and shift, adapters, prompts, sparse masks."""

from finetune_jax.deltas.adapted import Adapted, from_json, merge, unmergeable
from finetune_jax.deltas.adapters import AdaptFormer, Bottleneck
from finetune_jax.deltas.base import Delta, DeltaLeaf, leaf_key
from finetune_jax.deltas.lora import LoRA
from finetune_jax.deltas.prompts import Prompt
from finetune_jax.deltas.scaling import IA3, SSF
from finetune_jax.deltas.sparse import Sparse

__all__ = [
    "IA3",
    "SSF",
    "AdaptFormer",
    "Adapted",
    "Bottleneck",
    "Delta",
    "DeltaLeaf",
    "LoRA",
    "Prompt",
    "Sparse",
    "from_json",
    "leaf_key",
    "merge",
    "unmergeable",
]
