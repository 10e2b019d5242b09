"""What a folder of the hub holds, and which class of which library opens it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from finetune_jax.artifact import Artifact
from finetune_jax.errors import UserError
from finetune_jax.export.formats import Model
from finetune_jax.models import entry_of
from finetune_jax.tasks.base import ClassTask


class NotThere(UserError):
    """A library has no class that computes what a model computes; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Destination:
    """A folder for one model.

    Attributes:
      library: ``timm``, ``transformers`` or ``sentence-transformers``; empty for weights that have
        the names of another project, whose own code opens them.
      opener: the class or the architecture that opens the folder.
      origin: origin of the names of the tensors, see `finetune_jax.pretrained.map_of`.
      files: content of the JSON files, by their path in the folder.
      texts: content of other text files, by their path in the folder.
      prefix: text that is taken off the start of the names.
      dense: whether the head is a module of its own, in `DENSE`, and not in ``model.safetensors``.
      pooler: whether the class has a pooler; only transformers' encoders may lack it.
    """

    library: str
    opener: str
    origin: str
    files: Mapping[str, Any]
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    dense: bool = False
    pooler: bool = True


DENSE = "2_Dense"
"""Folder of the head in a folder of sentence-transformers."""


def family_of(model: Model) -> str:
    """The model family, which decides the name maps."""
    return entry_of(model.artifact.card["model"]["name"]).family


def label_names(artifact: Artifact) -> list[str]:
    """A name for each output: the classes, or LABEL_0, LABEL_1, … as transformers has them."""
    task = artifact.task
    if isinstance(task, ClassTask) and len(task.class_names) == task.head_size:
        return list(task.class_names)
    return [f"LABEL_{i}" for i in range(task.head_size)]
