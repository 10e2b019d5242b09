"""What trains: the scheme language, the named schemes, and the plan they resolve to."""

from finetune_jax.schemes.plan import FROZEN, Group, Leaf, Plan, difference
from finetune_jax.schemes.resolve import resolve

__all__ = ["FROZEN", "Group", "Leaf", "Plan", "difference", "resolve"]
