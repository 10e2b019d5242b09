"""What trains: the scheme language, the named schemes, phases, and the resolved plan."""

from finetune_jax.schemes.model_spec import ModelSpec, Selection
from finetune_jax.schemes.phases import Phase, lengths, print_phases, resolve_phases
from finetune_jax.schemes.plan import FROZEN, Group, Leaf, Plan, difference, doors_of
from finetune_jax.schemes.resolve import resolve

__all__ = [
    "FROZEN",
    "Group",
    "Leaf",
    "ModelSpec",
    "Phase",
    "Plan",
    "Selection",
    "difference",
    "doors_of",
    "lengths",
    "print_phases",
    "resolve",
    "resolve_phases",
]
