"""Tasks and losses of another package, named by import path."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune_jax import tasks
from finetune_jax.errors import UserError
from finetune_jax.setup import open_setup
from finetune_jax.tasks import Classification
from finetune_jax.tasks.loss import parse_loss
from finetune_jax.tasks.objectives import REAL, SINGLE

MODULE = """
import dataclasses

import jax
import jax.numpy as jnp

from finetune_jax.tasks import Classification, Task


def hinge(outputs, targets, given, *, margin=1.0, squared=False):
    right = jnp.sum(outputs * targets, axis=-1, keepdims=True)
    gaps = jnp.maximum(margin + outputs - right, 0) * (1 - targets)
    return jnp.sum(gaps**2 if squared else gaps, axis=-1)


@dataclasses.dataclass(frozen=True)
class Halved(Classification):
    factor: float = 0.5

    def per_example(self, outputs, batch, hyper=None):
        values = super().per_example(outputs, batch, hyper)
        return values | {"loss": self.factor * values["loss"]}


class Nameless(Task):
    pass


NUMBER = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "tasks_of_another.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_loss_is_called_with_its_options():
    outputs, targets = np.array([[2.0, 1.5, -1.0]], np.float32), np.eye(3, dtype=np.float32)[:1]
    loss = parse_loss("tasks_of_another:hinge", SINGLE)
    np.testing.assert_allclose(loss(outputs, targets), [0.5])
    loss = parse_loss(" tasks_of_another:hinge(margin=2, squared=True)", REAL)
    np.testing.assert_allclose(loss(outputs, targets), [1.5**2])
    task = Classification(("a", "b", "c"), "tasks_of_another:hinge(margin=2)")
    batch = {"label": jnp.array([0])}
    found = task.per_example(jnp.asarray(outputs), batch, {"label_smoothing": 0.0})
    np.testing.assert_allclose(found["loss"], [1.5])
    # The score stays the cross-entropy.
    plain = Classification(("a", "b", "c")).per_example(jnp.asarray(outputs), batch)
    np.testing.assert_allclose(task.per_example(jnp.asarray(outputs), batch)["loss"], plain["loss"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks_of_another:hing", "task.loss: the module .* has no 'hing'. Did you mean 'hinge'?"),
        ("tasks_of_anothe:hinge", "task.loss: .* cannot import 'tasks_of_anothe'"),
        ("tasks_of_another:NUMBER", "task.loss: .* expected a function, found int"),
        ("tasks_of_another:hinge(margn=2)", "unknown argument 'margn'. Did you mean 'margin'?"),
        ("tasks_of_another:hinge(2)", "write tasks_of_another:hinge\\(margin=…, squared=…\\)"),
        ("tasks_of_another:hinge + focal", "unknown loss 'tasks_of_another:hinge . focal'"),
    ],
)
def test_an_unknown_loss_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_loss(text, SINGLE)


def test_a_task_goes_through_json_by_its_door():
    kind = tasks.kind_of("tasks_of_another:Halved")
    task = kind(("a", "b"), "tasks_of_another:hinge(margin=2)", factor=0.25)
    values = json.loads(json.dumps(task.to_json()))
    assert values["name"] == "tasks_of_another:Halved" and values["factor"] == 0.25
    assert tasks.from_json(values) == task
    assert tasks.doors_of(values) == ("tasks_of_another:Halved", "tasks_of_another:hinge")
    assert tasks.doors_of(Classification(("a",), "focal(gamma=2)").to_json()) == ()
    tasks.require_classification(task)  # a subclass of Classification is one


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tasks_of_another:Halvd", "task.name: .* Did you mean 'Halved'?"),
        ("tasks_of_another:hinge", "task.name: .* expected type, found function"),
        ("pathlib:Path", "expected a subclass of finetune_jax.tasks.Task, found the class Path"),
        ("tasks_of_another:Nameless", "class Nameless needs the class attribute 'name'"),
        ("Halved", "unknown task 'Halved'.* named package.module:NAME"),
    ],
)
def test_an_unknown_task_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        tasks.kind_of(name)


def test_a_config_names_a_task_and_a_loss(tiny):
    config = tiny("tasks_of_another:Halved", "tasks_of_another:hinge(margin=3)")
    task = open_setup(config).task
    batch = {"label": jnp.zeros(2, jnp.int32)}
    logits = jax.random.normal(jax.random.key(0), (2, 10))
    found = task.per_example(logits, batch, {"label_smoothing": 0.0})["loss"]
    rest = np.maximum(3 + np.asarray(logits) - np.asarray(logits[:, :1]), 0)[:, 1:]
    np.testing.assert_allclose(found, rest.sum(1) / 2, rtol=1e-5)
