"""What trains: the scheme language, the named schemes, phases, and the plan they resolve to."""

from finetune_jax.schemes.phases import Phase, lengths, print_phases, resolve_phases
from finetune_jax.schemes.plan import FROZEN, Group, Leaf, Plan, difference
from finetune_jax.schemes.resolve import resolve

__all__ = [
    "FROZEN",
    "Group",
    "Leaf",
    "Phase",
    "Plan",
    "difference",
    "lengths",
    "print_phases",
    "resolve",
    "resolve_phases",
]
