"""The catalogue of models, which `python -m finetune_jax.models` prints."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
from commands import ROOT

from finetune_jax.files import read_json
from finetune_jax.models.__main__ import CATALOGUE, constants, describe
from finetune_jax.models.registry import FAMILY_MODULES
from finetune_jax.models.spellings import unknown

FEW = ("resnet8_mlperf", "squeezenet1_0")
TRACED = ("parameters", "flops")


def assert_describes(found, name):
    """An entry is what `describe` returns; FLOPs are an estimate of the installed XLA."""
    own = describe(name)
    assert found == {**own, "flops": pytest.approx(own["flops"], rel=1e-3)}, name


def test_the_catalogue_has_the_models_of_the_registry_and_their_constants():
    catalogue = read_json(CATALOGUE)
    modules = [importlib.import_module(f"finetune_jax.models.{name}") for name in FAMILY_MODULES]
    assert [*catalogue] == [name for module in modules for name in module.ENTRIES]
    for name, found in catalogue.items():
        without = {key: value for key, value in found.items() if key not in TRACED}
        assert without == constants(name), f"{name}: run python -m finetune_jax.models --update"
        assert found.keys() - without.keys() == {*TRACED}


@pytest.mark.parametrize("name", FEW)
def test_parameters_and_operations_are_those_of_the_model(name):
    assert_describes(read_json(CATALOGUE)[name], name)


@pytest.mark.slow
def test_parameters_and_operations_of_all_models_are_those_of_the_catalogue():
    for name, found in read_json(CATALOGUE).items():
        assert_describes(found, name)


def test_the_list_is_printed_without_jax():
    code = (
        "import sys; sys.argv = ['models', 'vit_ti.*']; import finetune_jax.models.__main__ as m;"
        "m.flags.FLAGS(sys.argv); m.main(sys.argv); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *lines, loaded = done.stdout.splitlines()
    assert any(line.startswith("vit_ti16 ") and " 5.72 M " in line for line in lines)
    assert not {"jax", "flax", "numpy"} & {*loaded.split()}


@pytest.mark.parametrize("name", ["microsoft/deberta-v3-base", "distilbert-base-uncased", "swin_t"])
def test_another_architecture_is_not_taken_for_one_whose_name_it_holds(name):
    message = unknown(name)
    assert "is another architecture than those of this package" in message
    assert "model.name=bert" not in message and "hf:" not in message
