"""Values that no leaf of a model may have: NaN, infinity, and negative variances."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from finetune_jax import tree
from finetune_jax.errors import UserError


def bad_values(path: str, values: np.ndarray) -> str:
    """Returns what is wrong with the values of a leaf; "" for good values.

    Args:
      path: leaf path with its collection; ``batch_stats/…/var`` are variances.
      values: values of the leaf.
    """
    # Not np.issubdtype, for which bfloat16 is no float.
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return ""
    # np.count_nonzero is much faster than a sum of booleans.
    count = values.size - int(np.count_nonzero(np.isfinite(values)))
    if count:
        return f"{count} of {values.size} values are NaN or infinite"
    if path.startswith("batch_stats/") and path.endswith("/var"):
        count = int(np.count_nonzero(values < 0))
        if count:
            return f"{count} of {values.size} variances are negative"
    return ""


def require_good_values(variables: tree.Tree, where: str) -> None:
    """Checks all leaves of ``{"params": …, "batch_stats": …}``.

    Args:
      variables: NumPy or JAX arrays.
      where: what holds the leaves, for the message.

    Raises:
      UserError: names the first bad leaf, and the number of bad leaves.
    """
    problems = {p: bad_values(p, np.asarray(x)) for p, x in tree.flatten(variables).items()}
    bad = {path: problem for path, problem in problems.items() if problem}
    if bad:
        path, problem = next(iter(bad.items()))
        others = f" (and {len(bad) - 1} more leaves are bad)" if len(bad) > 1 else ""
        raise UserError(f"{where}: {path}: {problem}{others}; such weights cannot be used")
