"""Arguments that no flag reads are answered with what may be meant; ``~`` is the home folder."""

from __future__ import annotations

from typing import Any

import pytest
from absl import flags

from finetune_jax import cli
from finetune_jax.arguments import at_home, unexpected, unknown_flag
from finetune_jax.ending import ending
from finetune_jax.errors import UserError


def test_the_home_folder_stands_for_a_tilde_in_the_value_of_a_flag(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert at_home("--workdir=~/runs/a") == "--workdir=/home/me/runs/a"
    assert at_home("--members=~/a,~/b,c~/d") == "--members=/home/me/a,/home/me/b,c~/d"
    # Keys of a config are kept as written, and a text that is predicted is no path.
    for kept in ("--config.pretrained.path=~/a", "~/a is a path", "--output=a~", "--json"):
        assert at_home(kept) == kept


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("batch_size", "Did you mean --config.train.batch_size or --config.eval.batch_size?"),
        ("batch-size", "Did you mean --config.train.batch_size"),
        ("lr", "no flag --lr. Did you mean --config.optimizer.learning_rate?"),
        ("epochs", "Did you mean --config.train.epochs?"),
        ("outptu", "Did you mean '--output'?"),
        ("xyz", "The flags of this command: --config, --output."),
        ("1 of 10", "a text that begins with - stands after --, as in: -- '-1 of 10'"),
    ],
)
def test_an_unknown_flag_is_answered_with_what_it_may_mean(name, message):
    assert message in unknown_flag(name, ["config", "output", "help"])


def test_a_command_without_a_config_proposes_no_keys():
    assert "--config" not in unknown_flag("epochs", ["members", "output"])


@pytest.mark.parametrize(
    ("arguments", "end"),
    [
        (["train.steps=8"], "; did you mean --config.train.steps=8?"),
        (["config.train.steps=8", "lr=0.1"],
         "; did you mean --config.train.steps=8 --config.optimizer.learning_rate=0.1?"),
        (["photos"], "found 'photos'"),
        (["a=b", "photos"], "found 'a=b' 'photos'"),
    ],
)  # fmt: skip
def test_a_setting_without_dashes_is_answered_with_its_flag(arguments, end):
    assert unexpected(arguments).endswith(end)


@pytest.mark.parametrize("name", ["workdir", "output"])
def test_an_empty_path_is_refused(monkeypatch, name):
    values = flags.FlagValues()
    flags.DEFINE_string(name, None, "", flag_values=values)
    monkeypatch.setattr(cli.flags, "FLAGS", values)
    assert cli._require_paths(values(["x", f"--{name}=here"])) == ["x"]
    with pytest.raises(UserError, match=f"--{name} is empty; expected a path"):
        cli._require_paths(values(["x", f"--{name}="]))


def test_a_device_that_is_not_there_ends_in_a_sentence(monkeypatch):
    names: dict[str, Any] = {}
    exec(compile("def backends():\n  raise AssertionError", "jax/xla_bridge.py", "exec"), names)
    for platforms, status in (("cuda", 2), ("", None)):
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
        with pytest.raises(AssertionError) as error:
            names["backends"]()
        found = ending(error.value)
        assert (found and found[1]) == status
        assert not found or "JAX_PLATFORMS=cuda: JAX finds no device of this kind" in found[0]
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    text = "Unable to initialize backend 'tpu': libtpu.so: No such file or directory"
    assert (ending(RuntimeError(text)) or [""])[0].startswith("error: JAX_PLATFORMS=tpu: JAX finds")
