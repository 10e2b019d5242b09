"""Task types, one file each: head size, loss, metrics, how a prediction reads."""

from finetune_jax.tasks.classification import Classification

__all__ = ["Classification"]
