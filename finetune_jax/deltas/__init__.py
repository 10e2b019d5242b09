"""Parameters beside a frozen model: low rank, scale and shift, adapters, prompts, sparse masks."""

from finetune_jax.deltas.adapted import Adapted, merge, unmergeable
from finetune_jax.deltas.adapters import AdaptFormer, Bottleneck
from finetune_jax.deltas.base import Arrays, Delta, DeltaLeaf, Shaped, Shapes, leaf_key
from finetune_jax.deltas.kinds import doors_of, from_json
from finetune_jax.deltas.lora import LoRA
from finetune_jax.deltas.prompts import Prompt
from finetune_jax.deltas.scaling import IA3, SSF
from finetune_jax.deltas.sparse import Sparse

__all__ = [
    "IA3",
    "SSF",
    "AdaptFormer",
    "Adapted",
    "Arrays",
    "Bottleneck",
    "Delta",
    "DeltaLeaf",
    "LoRA",
    "Prompt",
    "Shaped",
    "Shapes",
    "Sparse",
    "doors_of",
    "from_json",
    "leaf_key",
    "merge",
    "unmergeable",
]
