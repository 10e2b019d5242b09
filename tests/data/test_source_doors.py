"""Data sources of another package, named by import path."""

from __future__ import annotations

import pytest

from finetune_jax.config import default
from finetune_jax.data.class_map import open_configured
from finetune_jax.data.sources import Options, open_source
from finetune_jax.errors import UserError
from finetune_jax.setup import open_setup

MODULE = """
import numpy as np

from finetune_jax.data.examples import ArrayExamples
from finetune_jax.data.sources import Source
from finetune_jax.data.splits import resolve_split


def open_shades(name, argument, options):
    count = int(argument or 4)
    arrays = {
        "image": np.full((count, 8, 8, 3), options.split_seed, np.uint8),
        "label": np.arange(count) % 2,
    }

    def read(split):
        (_, start, stop), = resolve_split(split, {"train": count})
        return ArrayExamples({k: v[start:stop] for k, v in arrays.items()})

    return Source("shades", ("dark", "light"), {"train": count}, read, origin=argument)


def open_nothing(name, argument, options):
    return None


NUMBER = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "source_of_another.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_source_gets_its_argument_and_the_options():
    source = open_source("source_of_another:open_shades")
    assert source.name == "source_of_another:open_shades" and source.splits == {"train": 4}
    name = "source_of_another:open_shades:6"
    source = open_source(name, Options(split_seed=9))
    assert source.name == name and source.origin == "6"
    examples = source.read("train[:50%]")
    assert len(examples) == 3 and examples[1]["label"] == 1 and (examples[0]["image"] == 9).all()


def test_a_config_names_a_source():
    config = default()
    config.data.source = "source_of_another:open_shades:20"
    config.data.train, config.data.validation, config.data.test = "train[:15]", "train[15:]", ""
    assert open_configured(config.data).class_names == ("dark", "light")
    assert open_setup(config).task.class_names == ("dark", "light")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("source_of_another:open_shade", "no 'open_shade'. Did you mean 'open_shades'?"),
        ("source_of_another:open_nothing:3", "found a result of type NoneType"),
        ("source_of_another:NUMBER", "expected a function of .*, found int"),
        ("source_of_anothe:open_shades", "unknown source .* package.module:FUNCTION"),
        ("source_of_another:open_shades/x", "unknown source"),
        ("foldr:x", "unknown source 'foldr:x'. Did you mean 'folder'?"),
    ],
)
def test_an_unknown_source_of_another_package_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        open_source(name)
