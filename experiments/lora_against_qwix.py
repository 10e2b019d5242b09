"""Compares qwix's LoRA with ours on the same Linen modules: costs and abilities.

Commands:
  pip install -r requirements.txt -r requirements-reference.txt
  python -m experiments.lora_against_qwix [--output=experiments/lora_against_qwix.md]

Both implementations run in the train step of this library, which differentiates only the LoRA
factors and the head: qwix's wrapped model is applied like any other model, and its factors are
ordinary leaves for an ordered list of rules. The figures therefore differ only by what the two
implementations compute. FLOPs and temporary bytes are XLA's figures, from shapes alone. Steps are
timed alternately in one process, in blocks whose order changes, as the ratio of neighbouring
blocks.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import inspect
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from finetune_jax import tree
from finetune_jax.config import default
from finetune_jax.data.augment import InputPipeline
from finetune_jax.deltas import LoRA, merge
from finetune_jax.errors import UserError
from finetune_jax.models import build, initialise
from finetune_jax.progress import say
from finetune_jax.schemes import Phase, Plan, resolve
from finetune_jax.tasks import Classification
from finetune_jax.training import state as state_lib
from finetune_jax.training.optimizer import hyper_parameters, make_optimizer, make_rates
from finetune_jax.training.step import make_train_step

_OUTPUT = flags.DEFINE_string("output", "", "Markdown file to write.")
_ROUNDS = flags.DEFINE_integer("rounds", 11, "Timed pairs of blocks.", lower_bound=7)
_STEPS = flags.DEFINE_integer("steps", 10, "Steps of a timed block.", lower_bound=1)

ON = "query|value"
_TASK = Classification(tuple("abcdefghij"))
_CAST = "the same step, qwix's factors cast to bfloat16 by hand before the call"
# Two costs closer than this count as equal.
_EQUAL = 0.02


@dataclasses.dataclass(frozen=True)
class Side:
    """One implementation of LoRA, applied to one model.

    Attributes:
      model: model whose ``apply`` includes LoRA.
      plan: plan of the leaves in `abstract`.
      abstract: variables including the LoRA factors, as shape structs.
      config: config of the optimizer.
    """

    model: Any
    plan: Plan
    abstract: dict[str, Any]
    config: Any

    @property
    def rates(self) -> Any:
        """Learning rates of the single phase."""
        return make_rates(self.config, Phase(self.plan), 0, 1000)

    def create(self, variables: dict[str, Any]) -> tuple[state_lib.State, state_lib.Frozen]:
        """State and frozen half; abstract under `jax.eval_shape` with `abstract`."""
        optimizer = make_optimizer(self.config, self.rates)
        hyper = hyper_parameters(self.config, self.plan)
        return state_lib.create(variables, self.plan, optimizer, hyper, seed=0, ema=False)

    def lower(self, size: int, batch_size: int) -> tuple[Any, Any]:
        """(the lowered train step, its abstract state) for images of this size."""
        step = make_train_step(
            self.model,
            _TASK,
            self.plan,
            make_optimizer(self.config, self.rates),
            InputPipeline(lambda batch: batch["image"].astype(jnp.float32) / 255),
        )
        state, frozen = jax.eval_shape(self.create, self.abstract)
        batch = jax.eval_shape(lambda: batch_of(size, batch_size))
        return jax.jit(step, donate_argnums=0).lower(state, frozen, batch), state


def batch_of(size: int, count: int) -> dict[str, jax.Array]:
    """Random images and labels."""
    pixels, labels = jax.random.split(jax.random.key(5))
    return {
        "image": jax.random.randint(pixels, (count, size, size, 3), 0, 256).astype(jnp.uint8),
        "label": jax.random.randint(labels, (count,), 0, _TASK.head_size),
    }


def optimizer_config() -> Any:
    """AdamW at a constant rate."""
    config = default().optimizer
    config.update({"name": "adamw", "learning_rate": 1e-3, "schedule": "constant"})
    return config


def ours(model: Any, size: int, rank: int, on: str | None = ON) -> Side:
    """Our LoRA, with a trained head; with `on` None, on the default modules of the scheme."""
    base = jax.eval_shape(lambda k: initialise(model, size, k), jax.random.key(0))
    where = "" if on is None else f", on={on!r}"
    scheme = f"lora(rank={rank}{where}) + head"
    plan = resolve(scheme, model.stages, base["params"], base["batch_stats"])
    leaves = {x.path: jax.ShapeDtypeStruct(x.shape, x.dtype) for x in plan.leaves}
    abstract = {**base, "params": tree.unflatten(leaves)}
    return Side(plan.adapt(model), plan, abstract, optimizer_config())


def theirs(model: Any, size: int, rank: int, modules: str) -> Side:
    """qwix's LoRA on the modules whose path matches, with a trained head."""
    import qwix

    provider = qwix.LoraProvider(module_path=modules, rank=rank, alpha=float(rank))
    wrapped = qwix.apply_lora_to_model(model, provider)
    abstract = jax.eval_shape(lambda k: initialise(wrapped, size, k), jax.random.key(0))
    rules = [(".*_lora_[ab]", "lora"), ("head/.*", "head"), (".*", "frozen")]
    # If qwix found no module there are no factors, and our plan refuses a rule without a leaf.
    found = any("_lora_" in path for path in tree.flatten(abstract["params"]))
    scheme = rules if found else "head"
    plan = resolve(scheme, model.stages, abstract["params"], abstract["batch_stats"])
    return Side(wrapped, plan, abstract, optimizer_config())


def both(name: str, size: int, rank: int, on: str | None = ON, **options: Any) -> tuple[Side, Side]:
    """Both implementations on the same modules of the same model."""
    model = build(name, _TASK.head_size, image_size=size, **options)
    own = ours(model, size, rank, on)
    return own, theirs(model, size, rank, "|".join(d.module for d in own.plan.deltas))


def values(own: Side, other: Side, size: int, spread: float) -> tuple[Any, Any, Any]:
    """(variables of the bare model, of our side, of qwix's), with the same numbers in all.

    Args:
      own: our side.
      other: qwix's side.
      size: side of the images in pixels.
      spread: standard deviation of B; 0 leaves both at their start.
    """
    base = initialise(own.model.model, size, jax.random.key(1))
    head = base["params"]["head"]["kernel"]
    # A head of zeros would hide every difference.
    base["params"]["head"]["kernel"] = 0.1 * jax.random.normal(jax.random.key(2), head.shape)

    def moved(path: str, leaf: jax.Array) -> jax.Array:
        if not path.endswith("lora_b"):
            return leaf
        key = jax.random.fold_in(jax.random.key(3), len(path) + leaf.shape[-1])
        return spread * jax.random.normal(key, leaf.shape)

    params = own.plan.add_deltas(base["params"], jax.random.key(4))
    left = {**base, "params": tree.map_with_path(moved, params)}
    flat = tree.flatten(left["params"])
    names = tree.flatten(other.abstract["params"])
    renamed = {path: flat[path.replace("/kernel_lora_", "/lora_")] for path in names}
    return base, left, {**base, "params": tree.unflatten(renamed)}


def full_size_products(text: str, plan: Plan) -> int:
    """Number of products in StableHLO whose result has the shape of a frozen kernel's gradient."""
    shapes = {
        "x".join(map(str, leaf.shape))
        for leaf in plan.leaves
        if not leaf.trains and leaf.path.endswith("/kernel")
    }
    # JAX computes the gradient of a Dense kernel or its transpose.
    shapes |= {"x".join(reversed(s.split("x"))) for s in shapes}
    found = re.findall(r"stablehlo\.(?:dot_general|convolution)\b.*-> tensor<([\dx]+)xf32>", text)
    return sum(shape in shapes for shape in found)


def compiled(side: Side, size: int, batch_size: int) -> dict[str, float]:
    """Figures of the compiled train step."""
    lowered, state = side.lower(size, batch_size)
    step = lowered.compile()
    memory = step.memory_analysis()
    return {
        "trainable parameters": tree.size(state.params),
        "FLOPs of a step": float(step.cost_analysis()["flops"]),
        "temporary bytes": int(memory.temp_size_in_bytes),
        "optimizer bytes": tree.nbytes(state.opt_state),
        "full-size kernel gradients": full_size_products(lowered.as_text(), side.plan),
    }


def gradients_of_full(name: str, size: int, batch_size: int) -> int:
    """Control: the count of `full_size_products` where every kernel trains."""
    model = build(name, _TASK.head_size, image_size=size)
    base = jax.eval_shape(lambda k: initialise(model, size, k), jax.random.key(0))
    resolved = [resolve(s, model.stages, base["params"], {}) for s in ("full", "head")]
    side = Side(resolved[0].adapt(model), resolved[0], base, optimizer_config())
    return full_size_products(side.lower(size, batch_size)[0].as_text(), resolved[1])


_IMPORT = """
import json, sys, time
import jax, flax.linen, optax
before = set(sys.modules)
began = time.perf_counter()
import {module}
seconds = time.perf_counter() - began
new = set(sys.modules) - before
files = [getattr(sys.modules[m], "__file__", None) for m in new if m.split(".")[0] == {package!r}]
lines = sum(bool(x.strip()) for f in files if f for x in open(f, encoding="utf-8"))
print(json.dumps([seconds, len(new), lines]))
"""


def imports(rounds: int = 7) -> tuple[list[float], list[float]]:
    """(seconds, modules, lines) of each import after jax, flax.linen and optax; median seconds."""
    found: dict[str, list[list[float]]] = {"finetune_jax.deltas": [], "qwix": []}
    for _ in range(rounds):
        for module, rows in found.items():
            code = _IMPORT.format(module=module, package=module.split(".")[0])
            process = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
            rows.append(json.loads(process.stdout))
    own, other = (
        [statistics.median(row[0] for row in rows), *rows[0][1:]] for rows in found.values()
    )
    return own, other


def _apply(function: Callable[[Side], str], make: Callable[..., Side], model: Any, on: str) -> str:
    return function(make(model, 32, 4, on))


def attempt(function: Callable[[], str]) -> str:
    """The result of a function, or the error that it raises, in one line."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001  every error is a result here
        message = re.sub(r"\s+", " ", str(error)).strip()
        return f"`{type(error).__name__}: {message[:160]}`"


def largest(a: Any, b: Any) -> float:
    """Largest absolute difference."""
    return float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))))


def abilities() -> list[tuple[str, str, str]]:
    """Rows (question, our answer, qwix's answer)."""
    rows = []
    for name, label in (("vit_ti16", "ViT-Ti/16"), ("resnet20_cifar", "ResNet-20, convolutions")):
        say(f"comparing values on {name}")
        own, other = both(name, 32, 4, ON if name == "vit_ti16" else None)
        images = jax.random.normal(jax.random.key(6), (8, 32, 32, 3))
        base, left, right = values(own, other, 32, 0.0)
        start = own.model.model.apply(base, images)
        rows.append(
            (
                f"{label}: largest change of a logit at the start",
                f"{largest(own.model.apply(left, images), start):.2g}",
                f"{largest(other.model.apply(right, images), start):.2g}",
            )
        )
        _, left, right = values(own, other, 32, 0.3)
        a, b = own.model.apply(left, images), other.model.apply(right, images)
        rows.append(
            (
                f"{label}: largest logit with B drawn at random; the other's distance from it, "
                f"same factors",
                f"{float(jnp.max(jnp.abs(a))):.3g}",
                f"{largest(a, b):.2g}",
            )
        )
        _, difference = merge(own.model, left, images)
        flat = tree.flatten(right["params"])
        by_hand = {p: x for p, x in flat.items() if "_lora_" not in p}
        for path in by_hand:
            if f"{path}_lora_a" in flat:  # alpha / rank is 1
                by_hand[path] += flat[f"{path}_lora_a"] @ flat[f"{path}_lora_b"]
        merged = own.model.model.apply({**right, "params": tree.unflatten(by_hand)}, images)
        rows.append(
            (
                f"{label}: largest change of a logit by merging",
                f"{difference:.2g}",
                f"no function; {largest(b, merged):.2g} by W + A B written by hand",
            )
        )

    model = build("vit_ti16", _TASK.head_size, image_size=32)
    remat = build("vit_ti16", _TASK.head_size, image_size=32, remat=True)
    half = build("vit_ti16", _TASK.head_size, image_size=32, dtype="bfloat16")
    for label, function, module, on in (
        ("a step with recomputed activations (`model.remat`)", _trains, remat, ON),
        ("a step in bfloat16 over f32 leaves (`model.dtype`)", _trains, half, ON),
        ("bfloat16 with LoRA on query, key and value alike", _query_dtype, half, "query|key|value"),
        ("a module name that matches nothing (`quary`)", _factors, model, "quary"),
    ):
        say(f"trying {label}")
        where = rf"block_\d+/attn/({on})"
        our_answer = attempt(functools.partial(_apply, function, ours, module, on))
        their_answer = attempt(functools.partial(_apply, function, theirs, module, where))
        rows.append((label, our_answer, their_answer))
        if function is _trains and module is half:
            hand = attempt(lambda: _trains(_cast_factors(model, half)))
            rows.append((_CAST, "not needed", hand))
    rows.append(
        (
            "offered besides (read, not run)",
            "rsLoRA, DoRA, PiSSA, LoRA+",
            "quantised frozen kernels (QLoRA), dropout before A, NNX modules, einsum",
        )
    )
    return rows


@dataclasses.dataclass(frozen=True)
class _HalfFactors:
    """Calls qwix's model with its factors in bfloat16."""

    model: Any

    def apply(self, variables: dict[str, Any], *args: Any, **options: Any) -> Any:
        """``apply`` as that of a Linen module."""
        params = tree.map_with_path(
            lambda path, x: x.astype(jnp.bfloat16) if "_lora_" in path else x, variables["params"]
        )
        return self.model.apply({**variables, "params": params}, *args, **options)


def _cast_factors(model: Any, half: Any) -> Side:
    import qwix

    modules = rf"block_\d+/attn/({ON})"
    provider = qwix.LoraProvider(module_path=modules, rank=4, alpha=4.0)
    wrapped = _HalfFactors(qwix.apply_lora_to_model(half, provider))
    # Not even `init` runs in bfloat16, so the f32 model names the leaves.
    return dataclasses.replace(theirs(model, 32, 4, modules), model=wrapped)


def _trains(side: Side) -> str:
    step = side.lower(32, 4)[0].compile()
    variables = jax.tree.map(lambda x: jnp.full(x.shape, 0.01, x.dtype), side.abstract)
    _, metrics = step(*side.create(variables), batch_of(32, 4))
    return "works" if np.isfinite(metrics["grad_norm"]) else "a gradient that is not finite"


def _query_dtype(side: Side) -> str:
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    options = {"capture_intermediates": True, "mutable": ["intermediates"]}
    _, kept = jax.eval_shape(lambda v, x: side.model.apply(v, x, **options), side.abstract, images)
    query = kept["intermediates"]["block_0"]["attn"]["query"]["__call__"][0]
    return f"attention computes in {np.dtype(query.dtype).name}"


def _factors(side: Side) -> str:
    return f"accepted; {sum('lora_' in path for path in side.plan.trainable)} factors train"


def seconds_of_steps() -> tuple[list[float], list[float], float]:
    """(ratio of qwix to ours by round, median seconds of both, largest difference of losses)."""
    size, batch_size = 64, 32
    pair = both("vit_ti16", size, 8)
    _, *starts = values(*pair, size, 0.0)
    batch = batch_of(size, batch_size)
    runs: list[list[Any]] = []
    losses: list[list[float]] = []
    for side, variables in zip(pair, starts, strict=True):
        step = side.lower(size, batch_size)[0].compile()
        state, frozen = side.create(variables)
        runs.append([step, jax.tree.map(jnp.copy, state), frozen])
        losses.append([])

    def block(index: int) -> float:
        step, state, frozen = runs[index]
        began = time.perf_counter()
        for _ in range(_STEPS.value):
            state, metrics = step(state, frozen, batch)
            losses[index].append(metrics["loss"])
        jax.block_until_ready(state)
        runs[index][1] = state
        return (time.perf_counter() - began) / _STEPS.value

    for index in (0, 1):
        block(index)  # compiled and warm
    ratios, seconds = [], []
    for number in range(_ROUNDS.value):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        taken = {index: block(index) for index in order}
        ratios.append(taken[1] / taken[0])
        seconds.append([taken[0], taken[1]])
    medians = [statistics.median(column) for column in zip(*seconds, strict=True)]
    return ratios, medians, largest(losses[0], losses[1])


def verdict(
    costs: list[dict[str, float]],
    ratios: list[float],
    rows: list[tuple[str, str, str]],
    weight: tuple[list[float], list[float]],
) -> str:
    """One sentence from the figures."""
    keys = {"FLOPs": "FLOPs of a step", "temporaries": "temporary bytes"}
    relative = {label: costs[1][key] / costs[0][key] for label, key in keys.items()}
    even = all(abs(ratio - 1) <= _EQUAL for ratio in relative.values())
    figures = ", ".join(f"{label} {ratio:.3f}" for label, ratio in relative.items())
    text = (
        f"In f32 qwix's LoRA serves our modules {'as well as' if even else 'at another cost than'} "
        f"our own (qwix over ours: {figures}, step time {statistics.median(ratios):.2f})"
    )
    answers = {question: other for question, _, other in rows}
    failed = [question for question, other in answers.items() if other.startswith("`")]
    lacks = f"has no merging and imports {weight[1][1]:.0f} modules for our {weight[0][1]:.0f}"
    if not failed:
        return f"{text}; it {lacks}."
    remedy = " unless its factors are cast by hand" if answers[_CAST] == "works" else ""
    return (
        f"{text}, but not all that ours serves: it fails at {', '.join(failed)}{remedy}, {lacks}."
    )


def report() -> str:
    """The whole comparison as Markdown."""
    import qwix

    names = ("qwix", "jax", "flax", "optax")
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names)
    size, batch_size, rank = 224, 16, 8
    costs = []
    for label, side in zip(("ours", "qwix"), both("vit_s16", size, rank), strict=True):
        say(f"compiling ViT-S/16, {label}")
        costs.append(compiled(side, size, batch_size))
    control = gradients_of_full("vit_s16", size, batch_size)
    convolutions = []
    for label, side in zip(("ours", "qwix"), both("resnet20_cifar", 32, rank, None), strict=True):
        say(f"compiling ResNet-20, {label}")
        convolutions.append(compiled(side, 32, batch_size))
    rows = abilities()
    say("timing imports")
    weight = imports()
    say("timing steps")
    ratios, seconds, apart = seconds_of_steps()
    own_lines, other_lines = (
        sum(bool(line.strip()) for line in inspect.getsource(sys.modules[name]).splitlines())
        for name in (LoRA.__module__, qwix.LoraProvider.__module__)
    )
    lines = [
        "# Our LoRA beside qwix's on the same Linen modules",
        "",
        f"{versions}, Python {sys.version.split()[0]}, {jax.default_backend().upper()}. Command:",
        "",
        "```",
        "pip install -r requirements.txt -r requirements-reference.txt",
        "python -m experiments.lora_against_qwix --output=experiments/lora_against_qwix.md",
        "```",
        "",
        verdict(costs, ratios, rows, weight),
        "",
        f"One AdamW step, rank {rank}, LoRA and head train, batch {batch_size}; both sides run in "
        f"this library's train step, which differentiates the trainable leaves alone. Full-size "
        f"gradients are products in the lowered step with the shape of a frozen kernel; the step "
        f"that trains every leaf of ViT-S/16 has {control}.",
        "",
        "| compiled | ours | qwix | qwix / ours |",
        "|---|--:|--:|--:|",
    ]
    for label, pair in (
        (f"ViT-S/16, {size} px, query and value", costs),
        ("ResNet-20, 32 px, all convolutions", convolutions),
    ):
        for key in pair[0]:
            a, b = pair[0][key], pair[1][key]
            ratio = f"{b / a:.4f}" if a else "–"
            lines.append(f"| {label}: {key} | {a:,.0f} | {b:,.0f} | {ratio} |")
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    middle = statistics.median(ratios)
    lines += [
        "",
        "| measured | ours | qwix | qwix / ours |",
        "|---|--:|--:|--:|",
        f"| ViT-Ti/16, 64 px, batch 32: seconds of a step, medians of {len(ratios)} alternating "
        f"blocks of {_STEPS.value}, ratio's range {spread} | {seconds[0]:.3f} | "
        f"{seconds[1]:.3f} | {middle:.3f} |",
        f"| largest difference of the losses over those {(len(ratios) + 1) * _STEPS.value} steps, "
        f"same start | | | {apart:.1g} |",
        f"| import after jax, flax.linen and optax: seconds, median of 7 | {weight[0][0]:.2f} | "
        f"{weight[1][0]:.2f} | {weight[1][0] / weight[0][0]:.1f} |",
        f"| modules that import adds | {weight[0][1]:.0f} | {weight[1][1]:.0f} | "
        f"{weight[1][1] / weight[0][1]:.1f} |",
        f"| the package's own lines among them, without blank ones | {weight[0][2]:,.0f} | "
        f"{weight[1][2]:,.0f} | {weight[1][2] / weight[0][2]:.1f} |",
        f"| lines of `lora.py` itself | {own_lines} | {other_lines} | "
        f"{other_lines / own_lines:.1f} |",
        "",
        "| question | ours | qwix |",
        "|---|---|---|",
        *(f"| {q} | {_cell(a)} | {_cell(b)} |" for q, a, b in rows),
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    try:
        import qwix  # noqa: F401
    except ImportError:
        raise UserError(
            "qwix is not installed: pip install -r requirements-reference.txt"
        ) from None
    text = report()
    print(text)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(text + "\n")


if __name__ == "__main__":
    app.run(main)
