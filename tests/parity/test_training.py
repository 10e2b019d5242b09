"""Losses, optimizers and schedules are those of torch, torchvision, timm and transformers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="not run: needs requirements-reference.txt")
torchvision = pytest.importorskip("torchvision", reason="not run: needs requirements-reference.txt")
timm = pytest.importorskip("timm", reason="not run: needs requirements-reference.txt")
transformers = pytest.importorskip(
    "transformers", reason="not run: needs requirements-reference.txt"
)

import torch.nn.functional as F  # noqa: E402, N812
from timm.scheduler import CosineLRScheduler  # noqa: E402

from finetune_jax import tree  # noqa: E402
from finetune_jax.config import default  # noqa: E402
from finetune_jax.models import initialise  # noqa: E402
from finetune_jax.models.vit import ViT  # noqa: E402
from finetune_jax.schemes import Phase, resolve  # noqa: E402
from finetune_jax.schemes.schedules import parse_schedule  # noqa: E402
from finetune_jax.tasks import objectives  # noqa: E402
from finetune_jax.training.optimizer import (  # noqa: E402
    hyper_parameters,
    make_optimizer,
    make_rates,
)

_MODEL = ViT(width=8, depth=2, heads=2, patch=16, num_classes=5)
_GENERATOR = np.random.default_rng(0)
_LOGITS = 3 * _GENERATOR.standard_normal((16, 5)).astype(np.float32)
_CLASSES = _GENERATOR.integers(0, 5, 16)
_BITS = _GENERATOR.integers(0, 2, (16, 5)).astype(np.float32)
_VALUES = _GENERATOR.standard_normal((16, 5)).astype(np.float32)
_TEACHER = 2 * _GENERATOR.standard_normal((16, 5)).astype(np.float32)
_ONES = np.eye(5, dtype=np.float32)[_CLASSES]


def _smooth(x):
    return 0.9 * x + 0.1 / 5


def _distilled(x):
    soft = F.kl_div(
        F.log_softmax(x / 3, -1), F.softmax(torch.tensor(_TEACHER) / 3, -1), reduction="none"
    ).sum(-1)
    return 0.7 * 9 * soft + 0.3 * F.cross_entropy(x, torch.tensor(_CLASSES), reduction="none")


def _balanced(x):
    counts = torch.tensor([1.0, 10.0, 100.0, 5.0, 50.0])
    weights = (1 - 0.99) / (1 - 0.99**counts)
    weights = weights * 5 / weights.sum()
    return F.cross_entropy(x, torch.tensor(_CLASSES), weight=weights, reduction="none")


# Our loss of each example, and torch's.
_LOSSES = {
    "cross_entropy": (
        lambda x: objectives.cross_entropy(x, _ONES, {}),
        lambda x: F.cross_entropy(x, torch.tensor(_CLASSES), reduction="none"),
    ),
    "label_smoothing": (
        lambda x: objectives.cross_entropy(x, _smooth(_ONES), {}),
        lambda x: F.cross_entropy(x, torch.tensor(_CLASSES), label_smoothing=0.1, reduction="none"),
    ),
    "class_balanced": (
        lambda x: objectives.class_balanced(x, _ONES, {"counts": (1, 10, 100, 5, 50)}, beta=0.99),
        _balanced,
    ),
    "distill": (
        lambda x: objectives.distill(
            x, _ONES, {"teacher": _TEACHER}, teacher="", temperature=3.0, alpha=0.7
        ),
        _distilled,
    ),
    "binary": (
        lambda x: objectives.binary(x, _BITS, {}),
        lambda x: F.binary_cross_entropy_with_logits(x, torch.tensor(_BITS), reduction="none").mean(
            -1
        ),
    ),
    "binary_focal": (
        lambda x: objectives.binary_focal(x, _BITS, {}, gamma=2.0),
        lambda x: torchvision.ops.sigmoid_focal_loss(
            x, torch.tensor(_BITS), alpha=-1, gamma=2.0
        ).mean(-1),
    ),
    "binary_focal_alpha": (
        lambda x: objectives.binary_focal(x, _BITS, {}, gamma=1.5, alpha=0.25),
        lambda x: torchvision.ops.sigmoid_focal_loss(
            x, torch.tensor(_BITS), alpha=0.25, gamma=1.5
        ).mean(-1),
    ),
    "squared": (
        lambda x: objectives.squared(x, _VALUES, {}),
        lambda x: F.mse_loss(x, torch.tensor(_VALUES), reduction="none").mean(-1),
    ),
    "absolute": (
        lambda x: objectives.absolute(x, _VALUES, {}),
        lambda x: F.l1_loss(x, torch.tensor(_VALUES), reduction="none").mean(-1),
    ),
    "huber": (
        lambda x: objectives.huber(x, _VALUES, {}, delta=0.5),
        lambda x: F.huber_loss(x, torch.tensor(_VALUES), delta=0.5, reduction="none").mean(-1),
    ),
}


@pytest.mark.parametrize("name", _LOSSES)
def test_losses_and_their_gradients_are_those_of_torch(name):
    ours, theirs = _LOSSES[name]
    x = torch.tensor(_LOGITS, requires_grad=True)
    expected = theirs(x)
    expected.sum().backward()
    np.testing.assert_allclose(ours(_LOGITS), expected.detach(), rtol=2e-5, atol=1e-6)
    gradient = jax.grad(lambda y: ours(y).sum())(jnp.asarray(_LOGITS))
    np.testing.assert_allclose(gradient, x.grad, rtol=2e-5, atol=2e-6)


_OPTIMIZERS = {
    "sgd": ({"name": "sgd", "momentum": 0.0}, lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": (
        {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01},
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    ),
    "nesterov": (
        {"name": "sgd", "momentum": 0.9, "nesterov": True},
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    ),
    "adamw": (
        {"name": "adamw", "b1": 0.8, "b2": 0.95, "weight_decay": 0.05},
        lambda p: torch.optim.AdamW(p, 0.1, betas=(0.8, 0.95), weight_decay=0.05),
    ),
    "clipped": (
        {"name": "sgd", "momentum": 0.9, "clip_norm": 0.5},
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    ),
}


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_five_steps_are_those_of_torch(name):
    changes, make = _OPTIMIZERS[name]
    generator = np.random.default_rng(3)
    abstract = jax.eval_shape(lambda key: initialise(_MODEL, 32, key), jax.random.key(0))["params"]
    params = jax.tree.map(
        lambda x: jnp.asarray(generator.standard_normal(x.shape), jnp.float32), abstract
    )
    settings = default().optimizer
    settings.update({"learning_rate": 0.1, "schedule": "cosine", "momentum": 0.0, **changes})
    plan = resolve("full", _MODEL.stages, params, {}, decay=".*")
    ours = make_optimizer(settings, make_rates(settings, Phase(plan), 0, 5))
    hyper, state = hyper_parameters(settings, plan), ours.init(params)
    flat = tree.flatten(params)
    theirs = {path: torch.nn.Parameter(torch.tensor(np.asarray(x))) for path, x in flat.items()}
    optimizer = make(list(theirs.values()))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    for step in range(5):
        grads = {
            path: generator.standard_normal(x.shape).astype(np.float32) for path, x in flat.items()
        }
        updates, state = ours.update(
            tree.unflatten({p: jnp.asarray(g) for p, g in grads.items()}),
            state, params, step=jnp.asarray(step), hyper=hyper,
        )  # fmt: skip
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        for path, value in theirs.items():
            value.grad = torch.tensor(grads[path])
        if "clip_norm" in changes:
            torch.nn.utils.clip_grad_norm_(theirs.values(), changes["clip_norm"])
        optimizer.step()
        schedule.step()
    for path, value in tree.flatten(params).items():
        np.testing.assert_allclose(value, theirs[path].detach(), rtol=1e-5, atol=2e-6, err_msg=path)


def _rates(schedule, optimizer, steps):
    found = []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(*([step + 1] if isinstance(schedule, CosineLRScheduler) else []))
    return found


_SCHEDULES = {
    "cosine with warm-up of transformers": (
        ("cosine", 20, 5),
        lambda o: transformers.get_cosine_schedule_with_warmup(o, 5, 20),
    ),
    "linear with warm-up of transformers": (
        ("linear", 20, 5),
        lambda o: transformers.get_linear_schedule_with_warmup(o, 5, 20),
    ),
    "constant with warm-up of transformers": (
        ("constant", 20, 5),
        lambda o: transformers.get_constant_schedule_with_warmup(o, 5),
    ),
    "cosine of torch": (
        ("cosine", 20, 0),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20),
    ),
    "cosine with warm-up of timm": (
        ("cosine", 20, 5),
        lambda o: CosineLRScheduler(o, t_initial=15, warmup_t=5, warmup_prefix=True),
    ),
}


@pytest.mark.parametrize("name", _SCHEDULES)
def test_schedules_are_those_of_torch_timm_and_transformers(name):
    (text, total, warmup), make = _SCHEDULES[name]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    expected = _rates(make(optimizer), optimizer, total)
    ours = parse_schedule(text, total, warmup)
    found = [float(ours(jnp.asarray(step, jnp.float32))) for step in range(total)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
