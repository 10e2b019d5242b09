"""Mutants of the code, and the tests that should fail on each; run by `tests/mutation.py`."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of the code.

    Attributes:
      file: path of the file, from the root of the repository.
      old: text that occurs exactly once in the file.
      new: text that replaces it.
      tests: arguments of pytest that name the tests.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _of(file: str, tests: str | tuple[str, ...], *changes: tuple[str, str]) -> tuple[Mutant, ...]:
    tests = (tests,) if isinstance(tests, str) else tests
    return tuple(Mutant(f"finetune_jax/{file}", old, new, tests) for old, new in changes)


_SCHEMES = ("tests/schemes/test_small_spec.py", "tests/schemes/test_resolve.py")
_DELTAS = ("tests/schemes/test_delta_formulas.py", "tests/schemes/test_small_spec.py")
_TRAINING = ("tests/training/test_formulas.py", "tests/training/test_traps.py")

MUTANTS = (
    *_of(
        "schemes/masks.py",
        _SCHEMES,
        ("spec.stages[spec.stages.index(first) :]", "spec.stages[spec.stages.index(first) + 1 :]"),
        ("spec.stages.index(last) + 1]", "spec.stages.index(last)]"),
        ("re.fullmatch(name, s)", "re.match(name, s)"),
        ("Selection([*norm(spec).leaves, *head(spec).leaves])", "Selection(norm(spec).leaves)"),
        ("Philox(seed)", "Philox(0)"),
    ),
    *_of(
        "schemes/rates.py",
        _SCHEMES,
        ("decay ** (top - layer)", "decay ** (top - layer + 1)"),
        ("factor ** (layer - top)", "factor ** (top - layer)"),
        ("start * ratio ** (layer / top)", "start * ratio ** (layer / (top + 1))"),
        ("else start / 10", "else start"),
        ('("threshold", float(threshold))', '("threshold", 0.95)'),
    ),
    *_of(
        "schemes/resolve.py",
        _SCHEMES,
        ("decays=trains and bool(may_decay.fullmatch(path))", "decays=trains"),
        ("leaf.trains and not leaf.delta and", "leaf.trains and"),
        ('s in trained_stages or frozen_dropout == "train"', "s in trained_stages"),
    ),
    *_of(
        "deltas/lora.py",
        _DELTAS,
        ('self.path("b"): DeltaLeaf(b, lr=self.plus)', 'self.path("b"): DeltaLeaf(b)'),
        ("return (inner @ b) * self.scale", "return inner @ b"),
        ("delta = delta - self._product(module, x, y, a0, b0)", "pass"),
        ("return y + delta * cast(ratio, y) + linear", "return y + delta + linear"),
        ("jnp.sqrt(singular[: self.rank] / self.scale)", "jnp.sqrt(singular[: self.rank])"),
        ("norm = jax.lax.stop_gradient(jnp.sqrt(moved))", "norm = jnp.sqrt(moved)"),
        ("bound = 1 / math.sqrt(math.prod(window) * inputs)", "bound = 1 / math.sqrt(inputs)"),
        ("merged = merged * (length / norm)", "pass"),
    ),
    *_of(
        "deltas/scaling.py",
        _DELTAS,
        ("return y * cast(scale, y)\n", "return y\n"),
        ("args[0] * cast(scale, args[0])", "args[0]"),
        ("{scale: 1 + noise[scale], shift", "{scale: noise[scale], shift"),
    ),
    *_of(
        "deltas/adapters.py",
        _DELTAS,
        ("approximate=False", "approximate=True"),
        ("return self.scale * (hidden @ up + up_bias)", "return hidden @ up + up_bias"),
        ("bound = 1 / math.sqrt(self.width)", "bound = 1.0"),
    ),
    *_of(
        "deltas/prompts.py",
        _DELTAS,
        ("y[:, self.offset + self.tokens :]", "y[:, self.tokens :]"),
        ("math.sqrt(6 / (self.patch_inputs + self.width))", "math.sqrt(6 / self.width)"),
    ),
    *_of(
        "deltas/sparse.py",
        _DELTAS,
        ("SeedSequence([self.seed, *name])", "SeedSequence([self.seed])"),
    ),
    *_of(
        "training/step.py",
        _TRAINING,
        ("(1 + state.step) / (10 + state.step)", "(1 + state.step) / (9 + state.step)"),
        ("ema, 1 - decay)", "ema, decay)"),
        ("jax.random.fold_in(state.key, state.step)", "state.key"),
        ("part, jax.random.fold_in(key, index)", "part, key"),
        ("lambda x: x / count, (grads, metrics)", "lambda x: x, (grads, metrics)"),
        ("lambda w, g: w + reach * g", "lambda w, g: w - reach * g"),
        ("alpha * (w - start[path])", "alpha * (start[path] - w)"),
        ("else beta * w)", "else alpha * w)"),
        (".swapaxes(0, 1)", ""),
        ("State(state.step + 1, params", "State(state.step, params"),
    ),
    *_of(
        "training/optimizer.py",
        _TRAINING,
        ("optax.scale_by_adam(config.b1, config.b2)", "optax.scale_by_adam()"),
        ("optax.trace(config.momentum, config.nesterov)", "optax.trace(config.momentum)"),
        ("if of_group is None else of_group", "if True else of_group"),
        ("default = 0 if start else config.warmup_steps", "default = config.warmup_steps"),
        ("within = jnp.asarray(step - self.start", "within = jnp.asarray(step"),
        ("jnp.minimum(1.0, config.clip_norm", "jnp.maximum(1.0, config.clip_norm"),
        ("default if group.warmup is None else group.warmup", "default"),
        ("value if label is None else kept.get((label, field, leaf), value)", "value"),
        ('if config.name == "sgd" and any_decay', 'if config.name == "adamw" and any_decay'),
    ),
    *_of(
        "data/batches.py",
        ("tests/data/test_batches.py", "tests/data/test_order.py"),
        ("Philox(key=[self.seed, epoch])", "Philox(key=[self.seed, 0])"),
        ("Philox(key=[self.seed, epoch])", "Philox(key=[0, epoch])"),
        ("np.arange(step * self.batch_size", "np.arange(step * self.batch_size + 1"),
        ("indices if self.rows is None else indices[self.rows]", "indices"),
        ("real = rows[rows < count]", "real = rows[rows <= count]"),
        ("math.ceil(len(examples) / batch_size)", "len(examples) // batch_size"),
        ("(int(e) % views) * count", "0"),
    ),
    *_of(
        "evaluation/scores.py",
        "tests/evaluation/test_observe.py",
        ('batch.pop("mask") > 0', 'batch.pop("mask") >= 0'),
        ("real = slice(len(some))", "real = slice(None)"),
        ("if len(values) != len(examples):", "if False:"),
    ),
    *_of(
        "metrics/crossed.py",
        (
            "tests/ablation/test_significance.py",
            "tests/ablation/test_comparisons.py",
            "tests/experiments/test_error_rates.py",
        ),
        ("t.ppf((1 + level) / 2", "t.ppf(level"),
        ("float(2 * t.sf(", "float(t.sf("),
        ("variance = between / count + shared", "variance = between / count"),
    ),
    *_of(
        "ablation/report/statistics.py",
        (
            "tests/ablation/test_significance.py",
            "tests/ablation/test_comparisons.py",
            "tests/ablation/test_tables.py",
        ),
        ("s >= score and t >= thrift", "s > score and t > thrift"),
        (
            "sign * pair.difference.value > 0",
            "pair.difference.value > 0",
        ),
        (
            "p_holm = _holm({name: pair.p for name, pair in to_reference.items()})",
            "p_holm = {name: pair.p for name, pair in to_reference.items()}",
        ),
        ('1 if outcome.better == "max" else -1', "1"),
        ("<= getattr(two.cost, cost)", "< getattr(two.cost, cost)"),
    ),
)
