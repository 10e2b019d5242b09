"""The message about a mistyped scheme: the nearest name, and the place of the error."""

import pytest

from finetune_jax.errors import UserError
from finetune_jax.models import build, initial_variables
from finetune_jax.schemes import resolve_phases


@pytest.fixture(scope="module")
def model():
    model = build("resnet8_cifar", 5, image_size=16)
    return model, initial_variables(model, 16, stages=())


def phases(model, text):
    model, variables = model
    return resolve_phases(
        text, model.stages, variables["params"], variables["batch_stats"], batch_norm="frozen",
        frozen_dropout="eval", decay=".*kernel",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("lp_tf", "lp_ft"),
        ("gradaul", "gradual"),
        ("gradaul(epochs=2)", "gradual"),
        ("fine_tun", "fine_tune"),
        ("chainthaw", "chain_thaw"),
        ("head + phse(epochs=2)", "phase"),
        ("HEAD", "head"),
        ("Last_K(2)", "last_k"),
        ("LoRA(rank=2)", "lora"),
    ],
)
def test_the_nearest_name_is_of_one_vocabulary(model, text, name):
    with pytest.raises(UserError, match=f"Did you mean '{name}'"):
        phases(model, text)


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("", "found an empty text", None),
        ("   ", "found an empty text", None),
        ("head >> ", "the text ends after '>'", 7),
        ("head +", "the text ends after '\\+'", 6),
        (" head +", "the text ends after '\\+'", 7),
        ("head(lr=", "never closed", 4),
        ("head)", "unmatched", 4),
        ("head + (norm", "never closed", 7),
        ("head lr", "expected terms", 5),
        ("full >> >> head", "expected terms", 8),
        ("head(lr==1)", "must be plain numbers", 0),
        ("norm + head(lr==1)", "must be plain numbers", 7),
        ("norm + head[1]", "found 'head\\[1\\]'", 7),
        ("head(lr=1, lr=2)", "given 'lr' twice", 11),
        ("head(**{'lr': 1})", "not '\\*\\*'", 0),
        ("my.package:function() + head[1]", "found 'head\\[1\\]'", 24),
        ("ü + head[1]", "found 'head\\[1\\]'", 4),
    ],
)
def test_a_caret_shows_the_place(model, text, message, place):
    with pytest.raises(UserError, match=message) as error:
        phases(model, text)
    lines = str(error.value).split("\n")
    assert (lines[-1].index("^") - 2 if len(lines) == 3 else None) == place


def test_brackets_are_the_parsers(model):
    (first, second) = phases(model, "(head + norm) >> full")
    assert [first.plan.scheme, second.plan.scheme] == ["head + norm", "full"]
    assert phases(model, "(head)")[0].plan.scheme == "head"
    assert len(phases(model, "(('head/.*', 'a'), ('.*', 'frozen'))")) == 1
    with pytest.raises(UserError, match="cannot read the rules"):
        phases(model, "[('head/.*', 'a'")
    with pytest.raises(UserError, match="found 'head >> norm'"):
        phases(model, "(head >> norm) + full")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head(warmup=1.5)", "warmup must be a whole number >= 0, found 1.5$"),
        ("head(lr=-1)", "lr must be a number > 0, found -1$"),
        ("head(lr=0)", "to freeze leaves, use the group 'frozen'$"),
        ("llrd(0.75, lr=2)", "scales the rates of the other terms and takes no lr"),
        ("head + head", "the term 'head' is given twice"),
        ("gradual(epochs=-1)", "scheme gradual\\(epochs=-1\\): epochs: expected a number > 0"),
        ("chain_thaw(epochs=0)", "scheme chain_thaw.*expected a number > 0"),
        ("fine_tune(freeze_epochs='a')", "freeze_epochs: expected a number > 0"),
        ("llrd", r"takes \(decay, lr, schedule, warmup\)"),
    ],
)
def test_the_reason_is_the_right_one(model, text, message):
    with pytest.raises(UserError, match=message):
        phases(model, text)
