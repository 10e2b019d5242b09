"""Folders of the hub: which library opens a model, under which names, and the files beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finetune_jax.data.preprocess import ImagePreprocess
from finetune_jax.data.text import TextPreprocess
from finetune_jax.errors import UserError, nearest
from finetune_jax.export.formats import Model
from finetune_jax.export.hub import sentences, timm, transformers
from finetune_jax.export.hub.destination import (
    DENSE,
    Destination,
    NotThere,
    family_of,
    label_names,
)
from finetune_jax.export.hub.processors import tokenizer_files
from finetune_jax.pretrained.maps import maps_of

__all__ = ["DENSE", "Destination", "destination"]

_LIBRARIES: dict[str, Callable[[Model], Destination]] = {
    timm.LIBRARY: timm.destination,
    transformers.LIBRARY: transformers.destination,
    sentences.LIBRARY: sentences.destination,
}


def destination(model: Model) -> Destination:
    """The folder that ``--names`` chooses, by default that of the library of the base's names.

    Raises:
      UserError: unknown names, or names under which no library computes what the model computes;
        the message has the names that are possible.
    """
    origins = [name_map.origin for name_map in maps_of(family_of(model))]
    if not model.names:
        return _default(model, origins)
    if model.names in _LIBRARIES:
        try:
            return _LIBRARIES[model.names](model)
        except NotThere as reason:
            raise UserError(
                f"--names={model.names}: {model.names} cannot open this model: {reason}. "
                f"{_possible(model, origins)}"
            ) from None
    if model.names not in origins:
        known = (*_LIBRARIES, *origins)
        raise UserError(
            f"--names={model.names}: no such names.{nearest(model.names, known)} "
            f"{_possible(model, origins)}"
        )
    for describe in _LIBRARIES.values():
        try:
            found = describe(model)
        except NotThere:
            continue
        if found.origin == model.names and found.library == model.names.partition("_")[0]:
            return found
    return _names_alone(model)


def _default(model: Model, origins: list[str]) -> Destination:
    """The first library that opens the model; the library of the names of its base comes first."""
    base = str(model.artifact.card["base"].get("origin", ""))
    reasons = []
    for library in sorted(_LIBRARIES, key=lambda name: not base.startswith(name)):
        try:
            return _LIBRARIES[library](model)
        except NotThere as reason:
            reasons.append(f"{library}: {reason}")
    raise UserError(
        f"--format=safetensors: no library opens {model.artifact.card['model']['name']} "
        f"({'; '.join(reasons)}). {_possible(model, origins)}"
    )


def _possible(model: Model, origins: list[str]) -> str:
    """The values of ``--names`` that are possible, as a sentence."""
    opened = []
    for library, describe in _LIBRARIES.items():
        try:
            describe(model)
        except NotThere:
            continue
        opened.append(library)
    others = [origin for origin in origins if origin.partition("_")[0] not in _LIBRARIES]
    text = f"A library opens it with --names={' or --names='.join(opened)}. " if opened else ""
    return (
        f"{text}Weights with the names of a project, for that project's own code: "
        f"--names={' or --names='.join(others)}"
    )


def _names_alone(model: Model) -> Destination:
    """Weights with the names of another project, and what its code does not know about them."""
    artifact = model.artifact
    preprocess = artifact.preprocess
    description: dict[str, Any] = {
        "model": artifact.card["model"]["name"],
        "names": model.names,
        "task": artifact.task.name,
        "outputs": label_names(artifact),
    }
    files: dict[str, Any] = {}
    texts: dict[str, str] = {}
    if isinstance(preprocess, ImagePreprocess):
        description["inputs"] = preprocess.to_json()
    elif isinstance(preprocess, TextPreprocess):
        files, texts = tokenizer_files(preprocess)
    opener = f"the code of {model.names}"
    files |= {"config.json": description}
    return Destination("", opener, model.names, files, texts)
