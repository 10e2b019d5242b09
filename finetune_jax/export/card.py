"""The model card of an exported model: a ``README.md`` with the metadata of the hub."""

from __future__ import annotations

from typing import Any

from finetune_jax.export.formats import Model, format_of


def model_card(model: Model, name: str, found: dict[str, Any]) -> str:
    """The text of the card.

    Args:
      model: what was exported.
      name: name of the format.
      found: result of the comparison, see `finetune_jax.export.agreement.compare`.
    """
    title = model.artifact.card["model"]["name"]
    return f"# {title}\n\n```python\n{format_of(name).usage(model)}\n```\n"
