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


_SCHEMES = "tests/schemes"

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
        _SCHEMES,
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
        _SCHEMES,
        ("return y * cast(scale, y)\n", "return y\n"),
        ("args[0] * cast(scale, args[0])", "args[0]"),
        ("{scale: 1 + noise[scale], shift", "{scale: noise[scale], shift"),
    ),
    *_of(
        "deltas/adapters.py",
        _SCHEMES,
        ("approximate=False", "approximate=True"),
        ("return self.scale * (hidden @ up + up_bias)", "return hidden @ up + up_bias"),
        ("bound = 1 / math.sqrt(self.width)", "bound = 1.0"),
    ),
    *_of(
        "deltas/prompts.py",
        _SCHEMES,
        ("y[:, self.offset + self.tokens :]", "y[:, self.tokens :]"),
        ("math.sqrt(6 / (self.patch_inputs + self.width))", "math.sqrt(6 / self.width)"),
    ),
    *_of(
        "deltas/sparse.py",
        _SCHEMES,
        ("SeedSequence([self.seed, *name])", "SeedSequence([self.seed])"),
    ),
)
