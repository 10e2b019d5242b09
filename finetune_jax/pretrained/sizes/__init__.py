"""Determines the sizes and the pooling of a config's model from the files beside the weights.

A config may name a model without sizes, ``model.name=bert``. Its options come from the name
itself, from ``config.json`` beside the weights, or from the names and shapes of the weights, in
this order. The pooling of a text encoder comes from ``model.pooling``, or from the pooling file of
sentence-transformers beside the weights, whatever the entry of the registry has. The complete name
has all options: ``bert(depth=2, heads=2, …)``. Artifacts and runs keep the complete name, and so
they do not need the files beside the weights.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_collections

from finetune_jax.errors import UserError
from finetune_jax.files import read_json
from finetune_jax.models import GENERIC, MODELS, Entry, StagedModel, entry_of
from finetune_jax.models.options import joined, split
from finetune_jax.pretrained.selection import Selection
from finetune_jax.pretrained.sizes import preprocessing, shapes, transformers_config
from finetune_jax.pretrained.sizes.pooling import read_pooling
from finetune_jax.pretrained.sizes.spelled import settle_name
from finetune_jax.pretrained.sizes.transformers_config import Description
from finetune_jax.pretrained.sources import companion_folder
from finetune_jax.progress import say_once

_CONFIG, _PREPROCESSING = "config.json", "preprocessor_config.json"
_OLD_CONFIG = "bert_config.json"  # name of config.json in BERT's first release
_POOLING_FILES = ("modules.json", "1_Pooling/config.json")
_LENGTH = "sentence_bert_config.json"
# Options that only a config shows, and that change what a network computes without any error.
_UNSEEN = ("activation", "padding", "from_padding", "stride_first")
# A difference of epsilons below this changes no output that a float shows.
_EPSILON = 2e-6
# timm's architectures whose heads have 64 channels, and those that compute what our ResNets do.
_TIMM_VIT = re.compile(r"(vit|deit3?)_(tiny|small|medium|base|large)_patch\d+_\d+")
_TIMM_RESNET = re.compile(r"resnet\d+|resnext\d+_\d+x\d+d|wide_resnet\d+_2")


def settle_model(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with a complete ``model.name``, and with the preprocessing of a generic model.

    Keys of ``config.data`` that the user has set stay as they are. A config whose model has all
    sizes already is returned as it is.

    A name of another project, and ``pretrained.path="published"``, are read by
    `spelled.settle_name` first.

    Raises:
      UserError: sizes or pooling are not known, or the files beside the weights describe a model
        that the options cannot express, or another model than the registry's entry.
    """
    config = settle_name(config)
    base, given = _given(config)
    entry = {**MODELS, **GENERIC}.get(base)
    if entry is None:
        return config
    options = dict(given)
    data: dict[str, Any] = {}
    folder = _folder(config.pretrained.path, base in GENERIC, entry.tokens)
    if base in GENERIC:
        options, data = _sized(base, entry, given, config.pretrained, folder)
    elif folder is not None:
        _compare(base, given, folder)
        if not entry.tokens:
            _compare_preprocessing(entry, config.data, folder)
    if entry.tokens and folder is not None:
        options |= _pooling(base, options, given, config.pretrained, folder)
    name = joined(base, options)
    entry_of(name)  # refuses options that are wrong or missing
    data = {key: value for key, value in data.items() if config.data[key] in (0, "", (), -1.0)}
    if name == config.model.name and not data:
        return config
    if name != config.model.name:
        say_once(f"model.name={name}")
    settled = config.copy_and_resolve_references()
    with settled.unlocked():
        settled.model.name = name
        settled.data.update(data)
    return settled


def _given(config: ml_collections.ConfigDict) -> tuple[str, dict[str, Any]]:
    """The name of the entry, and the options of ``model.name`` and ``model.pooling``."""
    name, pooling = config.model.name, config.model.pooling
    base, given = split(name) if "(" in name else (name, {})
    if not pooling:
        return base, given
    entry = {**MODELS, **GENERIC}.get(base)
    if entry is None or "pooling" not in entry.options:
        raise UserError(
            f"model.pooling: {base} has no choice of pooling; expected '', found {pooling!r}"
        )
    if given.get("pooling", pooling) != pooling:
        raise UserError(f"model.pooling={pooling!r} contradicts model.name={name!r}")
    return base, {**given, "pooling": pooling}


def _module(base: str, given: dict[str, Any]) -> StagedModel:
    """The module of an entry of the registry with options."""
    entry = entry_of(joined(base, given))
    heads = {"head_kind": entry.heads[0]} if entry.heads else {}
    return entry.build(num_classes=1, **heads)


def _folder(source: str, generic: bool, tokens: bool) -> Path | None:
    """The folder with the files beside the weights; None if the source has no such folder."""
    if not source:
        return None
    names = [_CONFIG, *(_POOLING_FILES if tokens else [_PREPROCESSING])]
    if tokens:
        names += ["tokenizer.json", *([_LENGTH] if generic else [])]
    return companion_folder(source, names, fetch=generic or tokens)


def _read(folder: Path | None, name: str) -> dict[str, Any]:
    """A JSON object of a folder; {} if there is no such file."""
    return read_json(folder / name) if folder is not None and (folder / name).is_file() else {}


def _sized(
    base: str,
    entry: Entry,
    given: dict[str, Any],
    settings: ml_collections.ConfigDict,
    folder: Path | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All options of a generic model, and the keys of ``config.data`` that files decide."""
    file, values = _description(base, folder)
    data: dict[str, Any] = {}
    if transformers_config.is_description(values):
        assert folder is not None
        found = transformers_config.read(values, str(file))
        if found.model != base:
            raise UserError(
                f"model.name: {file} describes a model of the kind {found.model} (model_type "
                f"{values['model_type']!r}); expected model.name={found.model}, found {base!r}"
            )
        options = {**_defaults(entry), **found.options, **given}
        say_once(f"sizes of the model: from {file}")
        _say_overridden(given, found.options, file)
        data = _text_data(folder, options) if entry.tokens else _image_data(folder, found)
    elif settings.path and any(option not in given for option in entry.required):
        options, data = _from_shapes(base, entry, given, settings, values)
        if "pretrained_cfg" in values and isinstance(values["pretrained_cfg"], dict):
            assert folder is not None
            data |= preprocessing.from_timm(values["pretrained_cfg"], folder / _CONFIG)
        elif not entry.tokens:
            say_once(_assumed_preprocessing(entry, settings.path))
    else:
        options = {**given} if any(o not in given for o in entry.required) else (
            _defaults(entry) | given
        )  # fmt: skip
    if entry.tokens and "pooling" not in given:
        options.pop("pooling", None)
    return options, data


def _say_overridden(given: dict[str, Any], theirs: dict[str, Any], file: Path) -> None:
    """Warns about options of the user that contradict a file; `_pooling` reports the pooling."""
    differs = [o for o in given if o in theirs and given[o] != theirs[o]]
    if differs:
        ours = ", ".join(f"{option}={given[option]!r}" for option in differs)
        others = ", ".join(f"{option}={theirs[option]!r}" for option in differs)
        say_once(f"warning: {ours} as asked, although {file} says {others}")


def _description(base: str, folder: Path | None) -> tuple[Path, dict[str, Any]]:
    """The file of transformers or timm that describes the model, and its values; {} without it.

    The first files of BERT do not name the type of the model.
    """
    folder = folder or Path()
    for name in (_CONFIG, _OLD_CONFIG):
        values = _read(folder, name)
        if "model_type" not in values and {"hidden_size", "num_attention_heads"} <= values.keys():
            say_once(f"{folder / name} has no model_type; taken for {base}, as model.name says")
            values = {**values, "model_type": base}
        if transformers_config.is_description(values) or "architecture" in values:
            return folder / name, values
    return folder / _CONFIG, {}


def _defaults(entry: Entry) -> dict[str, Any]:
    """The values of all options that an entry or the class of its model has."""
    fields = entry.build.func.__dataclass_fields__  # type: ignore[attr-defined]  # a partial
    own = entry.build.keywords  # type: ignore[attr-defined]  # a partial
    found = {o: own.get(o, fields[o].default) for o in entry.options if o not in entry.required}
    return {o: value for o, value in found.items() if value is not None}


def _assumed_preprocessing(entry: Entry, where: Any) -> str:
    return (
        f"{where}: no file says how images are prepared; assumed: mean {entry.inputs.mean}, std "
        f"{entry.inputs.std}, {entry.inputs.interpolation}; data.mean, data.std and "
        f"data.interpolation set other values"
    )


def _image_data(folder: Path, found: Description) -> dict[str, Any]:
    values = _read(folder, _PREPROCESSING)
    if not values:
        say_once(_assumed_preprocessing(GENERIC[found.model], folder))
    data = preprocessing.from_transformers(values, folder / _PREPROCESSING) if values else {}
    return {**({"image_size": found.image_size} if found.image_size else {}), **data}


def _text_data(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The number of tokens that sentence-transformers cuts texts to."""
    length = _read(folder, _LENGTH).get("max_seq_length")
    most = options["positions"] - (options["padding"] + 1 if options["from_padding"] else 0)
    if isinstance(length, bool) or not isinstance(length, int) or not 0 < length <= most:
        return {}
    return {"max_tokens": length}


def _from_shapes(
    base: str,
    entry: Entry,
    given: dict[str, Any],
    settings: ml_collections.ConfigDict,
    values: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options from the shapes of a file, and the side of its images."""
    path = settings.path
    found = shapes.sizes_of(base, _leaf_shapes(settings, entry), path)
    data = {"image_size": found.pop("image_size")} if "image_size" in found else {}
    architecture = str(values.get("architecture", ""))
    if base == "vit" and _TIMM_VIT.fullmatch(architecture):
        found["heads"] = found["width"] // 64
    if base == "resnet" and architecture and not _TIMM_RESNET.fullmatch(architecture):
        raise UserError(
            f"{path}: config.json beside it names timm's {architecture}, and shapes do not show "
            f"whether that is one of our ResNets; if it is, give all sizes: {joined(base, found)}"
        )
    hidden = [o for o in shapes.HIDDEN[base] if o not in given and o not in found]
    if hidden:
        asked = ", ".join(f"{option}=…" for option in hidden)
        raise UserError(
            f"{path}: its shapes show {joined(base, found)}, but not the option "
            f"{', '.join(hidden)}, and no config.json of transformers lies beside it; write "
            f"model.name='{base}({asked})'"
        )
    options = {**_defaults(entry), **found, **given}
    assumed = {o: options[o] for o in shapes.ASSUMED[base] if o not in given and o not in found}
    unseen = ", ".join(f"{option}={value!r}" for option, value in assumed.items())
    say_once(
        f"sizes of the model: from the shapes in {path}"
        + (f"; not visible there and assumed: {unseen}" if unseen else "")
    )
    return options, data


def _leaf_shapes(settings: ml_collections.ConfigDict, entry: Entry) -> dict[str, tuple[int, ...]]:
    selection = Selection(settings.weights, settings.prefix, settings.ignore)
    return shapes.leaf_shapes(settings.path, entry.family, selection, settings.name_map)


def _compare(base: str, given: dict[str, Any], folder: Path) -> None:
    """Compares an entry of the registry with the ``config.json`` beside the weights.

    Heads that differ are refused: the file loads, and every block then computes something else.
    """
    where = folder / _CONFIG
    try:
        values = _read(folder, _CONFIG)
    except UserError as error:
        say_once(f"warning: not compared with the model: {error}")
        return
    if values.get("model_type") not in transformers_config.MODEL_TYPES:
        return
    found = transformers_config.read(values, str(where))
    if GENERIC[found.model].family != entry_of(base).family:
        return
    model, theirs = _module(base, given), found.options
    if "heads" in theirs and theirs["heads"] != getattr(model, "heads", theirs["heads"]):
        raise UserError(
            f"model.name: {base} has {getattr(model, 'heads', 0)} attention heads, and {where} "
            f"says {theirs['heads']}; model.name={found.model} takes the sizes of the file"
        )
    differs = [o for o in _UNSEEN if o in theirs and theirs[o] != getattr(model, o, theirs[o])]
    epsilons = (theirs.get("epsilon", 0.0), getattr(model, "epsilon", 0.0))
    if "epsilon" in theirs and epsilons[0] != epsilons[1] and max(epsilons) > _EPSILON:
        differs.append("epsilon")
    if differs:
        ours = ", ".join(f"{option}={getattr(model, option)!r}" for option in differs)
        others = ", ".join(f"{option}={theirs[option]!r}" for option in differs)
        say_once(
            f"warning: {base} has {ours}, and {where} says {others}; model.name={found.model} "
            f"takes the settings of the file"
        )


def _compare_preprocessing(entry: Entry, data: ml_collections.ConfigDict, folder: Path) -> None:
    """Says where the colours of an entry are not those of ``preprocessor_config.json``."""
    path = folder / _PREPROCESSING
    try:
        values = _read(folder, _PREPROCESSING)
        theirs = preprocessing.from_transformers(values, path) if values else {}
    except UserError as error:
        say_once(f"warning: not compared with the model: {error}")
        return
    ours = {
        "mean": tuple(data.mean) or entry.inputs.mean,
        "std": tuple(data.std) or entry.inputs.std,
    }
    pairs = {key: zip(ours[key], theirs.get(key, ours[key]), strict=True) for key in ours}
    differs = [key for key in ours if any(abs(a - b) > 1e-3 for a, b in pairs[key])]
    if differs and entry.inputs.channels == "rgb":
        sets = " ".join(f"--config.data.{key}='{theirs[key]}'" for key in differs)
        say_once(
            f"warning: images get {', '.join(f'{key} {ours[key]}' for key in differs)}, and {path} "
            f"says otherwise: {sets}"
        )


def _pooling(
    base: str,
    options: dict[str, Any],
    given: dict[str, Any],
    settings: ml_collections.ConfigDict,
    folder: Path,
) -> dict[str, Any]:
    """``{"pooling": …}`` where the folder of the weights decides it; {} where nothing changes."""
    chosen = given.get("pooling")
    if chosen:
        try:
            found = read_pooling(folder)
        except UserError:
            return {}
        if found and found[0] != chosen:
            say_once(f"pooling={chosen!r} as asked, although {found[1]} says {found[0]!r}")
        return {}
    found = read_pooling(folder)
    if found:
        pooling, path = found
        if base in MODELS and getattr(_module(base, options), "pooling", "") == pooling:
            return {}
        say_once(f"pooling={pooling!r}: from {path}")
        return {"pooling": pooling}
    if base in MODELS:
        return {}
    if "pooler/dense/kernel" not in _leaf_shapes(settings, GENERIC[base]):
        raise UserError(
            f"{settings.path}: the file has no pooler and its folder no pooling file of "
            f"sentence-transformers; set model.pooling to cls or mean"
        )
    return {"pooling": "pooler"}
