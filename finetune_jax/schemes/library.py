"""The named schemes: each says which leaves of a model train, at what rate, or what is added.

A scheme is a function of the model's `Outline` and its own arguments that returns a `Claim`. It
decides nothing else: groups, decay and BatchNorm modes belong to the plan.
"""

from __future__ import annotations

from collections.abc import Callable

from finetune_jax.schemes import additions, masks, rates
from finetune_jax.schemes.outline import Claim

SCHEMES: dict[str, Callable[..., Claim]] = {
    term.__name__: term for term in (*masks.TERMS, *rates.TERMS, *additions.TERMS)
}
