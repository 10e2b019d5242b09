"""Where a model and its data come from, in words that hold no path."""

from __future__ import annotations

from pathlib import PurePath

from finetune_jax.export.formats import Model
from finetune_jax.models import MODELS, entry_of
from finetune_jax.pretrained.sources.pins import PUBLISHED


def _source(model: Model) -> str:
    return str(model.config.get("pretrained", {}).get("path", ""))


def repository(model: Model) -> str:
    """``owner/name`` of the base on the hub; empty if the run did not take it from there."""
    source = _source(model)
    return source.removeprefix("hf:").partition("@")[0] if source.startswith("hf:") else ""


def licence(model: Model) -> str:
    """Licence of the base in the spelling of the hub, such as ``apache-2.0``; empty if unknown.

    It is known for the published weights of the registry: by their source, or by name and digest.
    """
    base = model.artifact.card["base"]
    name = model.artifact.card["model"]["name"].partition("(")[0]
    if name not in MODELS:
        return ""
    entry = entry_of(name)
    source = _source(model).partition("@")[0].partition("#")[0]
    published = PUBLISHED.get(str(base.get("file")))
    known = source in entry.weights or (published and published == base.get("sha256"))
    return entry.licence.lower() if known else ""


def base_sentence(model: Model) -> str:
    """What the model started from, with the digest of its file."""
    card = model.artifact.card
    base, name = card["base"], card["model"]["name"]
    if not base.get("file"):
        return f"`{name}`, trained from random weights."
    where = f"[{repository(model)}](https://huggingface.co/{repository(model)})"
    file = PurePath(str(base["file"])).name
    origin = f", names of {base['origin']}" if base.get("origin") else ""
    source = where if repository(model) else f"the weight file `{file}`"
    digest = f" (SHA-256 `{base['sha256']}`{origin})" if base.get("sha256") else ""
    return f"`{name}`, which started from {source}{digest}."


def data_sentence(model: Model) -> str:
    """What the data are, without where they lay."""
    source = str(model.config.get("data", {}).get("source", ""))
    kind, _, rest = source.partition(":")
    words = {
        "": "The data are not known here.",
        "folder": "A folder of images.",
        "csv": "A table of the author.",
        "tfds": f"The data set `{rest}` of TensorFlow Datasets.",
        "hf": f"The data set `{rest}` of the hub.",
    }
    return words.get(kind, f"The data set `{kind}`.")
