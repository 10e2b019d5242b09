"""Phases: a run as a list of schemes, each with a length and learning rates.

``linear_probe + phase(epochs=2) >> full + phase(lr=0.1)`` trains the head for two epochs, then
everything for the rest of the run at a tenth of the run's learning rate. A program such as
``lp_ft`` or ``gradual(epochs=1)`` stands for a list of phases; the other terms of a program's sum
(``gradual + discriminative(2.6)``) join every phase of the list.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

from finetune_jax import tree
from finetune_jax.deltas import Delta
from finetune_jax.doors import is_door
from finetune_jax.errors import UserError, nearest
from finetune_jax.grammar import Call, Sum, parse_sequence, print_sum
from finetune_jax.quantization import Format, formats_by_leaf, is_weight, parse_rules
from finetune_jax.schemes.arguments import non_negative_int, positive_int
from finetune_jax.schemes.library import expand
from finetune_jax.schemes.model_spec import ModelSpec
from finetune_jax.schemes.plan import Plan
from finetune_jax.schemes.resolve import Scheme, resolve
from finetune_jax.schemes.rules import is_rules_text
from finetune_jax.schemes.terms import with_schemes

SOLVERS = ("lbfgs", "ridge")
OPTIMIZERS = ("sgd", "adamw")


@dataclasses.dataclass(frozen=True)
class Phase:
    """A span of steps under one plan.

    Attributes:
      plan: the plan of these steps.
      epochs: length in epochs, > 0. If `epochs` and `steps` are None, the phase shares the steps
        that the phases with a length leave of the run.
      steps: length in steps, instead of `epochs`.
      lr: factor on the run's learning rate, > 0.
      schedule: learning rate schedule; None takes the run's schedule.
      warmup: number of warm-up steps; None takes the run's number in the first phase, and 0 in all
        later phases.
      reset: whether the optimizer state starts fresh. Otherwise the leaves that train in the phase
        before, too, keep their state.
      optimizer: ``sgd`` or ``adamw``; None takes the run's optimizer. After a change of optimizer
        all moments start fresh.
      decay: weight decay, >= 0; None takes the run's decay.
      clip: limit of the gradient norm, 0 for no limit; None takes the run's limit.
      solve: ``lbfgs`` or ``ridge`` solves the head on frozen features instead of training it; None
        trains.
      quantize: quantization-aware training: the model computes with the values that the weights of
        the base have in a format, such as ``int8``, or by the rules of
        `finetune_jax.quantization.parse_rules`; None computes with the weights as they are.
    """

    plan: Plan
    epochs: float | None = None
    steps: int | None = None
    lr: float = 1.0
    schedule: str | None = None
    warmup: int | None = None
    reset: bool = False
    optimizer: str | None = None
    decay: float | None = None
    clip: float | None = None
    solve: str | None = None
    quantize: str | None = None

    @functools.cached_property
    def formats(self) -> tuple[tuple[str, Format], ...]:
        """(path, format) of each weight that is rounded; UserError for rules that do not fit."""
        return formats_of(self.plan, self.quantize or "", "phase: quantize")

    def to_json(self) -> dict[str, Any]:
        """Options, and the plan's JSON under ``plan``."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**options, "plan": self.plan.to_json()}


def formats_of(plan: Plan, rules: str, where: str) -> tuple[tuple[str, Format], ...]:
    """(path, format) of the weights of a plan's base that rules name; those of deltas keep f32.

    Args:
      plan: the plan.
      rules: see `finetune_jax.quantization.parse_rules`; empty for none.
      where: name of the key, for messages.

    Raises:
      UserError: wrong rules, or rules that do not fit the model.
    """
    if not rules:
        return ()
    weights = [x.path for x in plan.leaves if not x.delta and is_weight(x.path, x)]
    found = formats_by_leaf(parse_rules(rules, where), weights, where)
    if not found:
        raise UserError(f"{where}: {rules!r} keeps every weight; expected a format, such as int8")
    if any(format_.inputs == "static" for format_ in found.values()):
        raise UserError(
            f"{where}: the scales of w8a8_static are measured on a trained model, by "
            f"finetune_jax.quantize; expected w8a8 here"
        )
    return tuple(found.items())


def resolve_phases(
    scheme: Scheme,
    stages: Sequence[str],
    params: tree.Tree,
    batch_stats: tree.Tree,
    *,
    deltas: Sequence[Delta] = (),
    **options: Any,
) -> tuple[Phase, ...]:
    """Resolves `config.scheme` to one or more phases.

    Args:
      scheme: as for `resolve`, or sums of terms joined by ``>>``.
      stages: stage names in forward order.
      params: param pytree of the base, concrete or abstract.
      batch_stats: BatchNorm statistics.
      deltas: deltas that are in place before the first phase.
      **options: the policies of `resolve`: ``batch_norm``, ``frozen_dropout``, ``decay``.

    Raises:
      UserError: as `resolve`, and for wrong options of a phase.
    """
    if not isinstance(scheme, str) or is_rules_text(scheme):
        return (Phase(resolve(scheme, stages, params, batch_stats, deltas=deltas, **options)),)
    spec = ModelSpec(tuple(stages), tree.flatten({stage: params[stage] for stage in stages}))
    phases: list[Phase] = []
    for terms, doors in _expand(parse_sequence(scheme), spec):
        body = tuple(t for t in terms if t.name != "phase")
        settings = [t for t in terms if t.name == "phase"]
        if not body or len(settings) > 1:
            raise UserError(
                f"scheme: a phase is a sum of schemes with at most one phase(...), found "
                f"{print_sum(terms)!r}"
            )
        plan = resolve(body, stages, params, batch_stats, deltas=deltas, doors=doors, **options)
        deltas = plan.deltas
        phases.append(_phase(plan, settings[0] if settings else Call("phase")))
    return tuple(phases)


def _expand(sums: Sequence[Sum], spec: ModelSpec) -> list[tuple[Sum, list[str]]]:
    """The sum of every phase, programs replaced, and the doors of the program behind the phase."""
    result: list[tuple[Sum, list[str]]] = []
    for terms in sums:
        doors: list[str] = []
        found = [
            (i, phases)
            for i, term in enumerate(terms)
            if term.name != "phase"
            and (phases := expand(term, with_schemes(spec, doors))) is not None
        ]
        if not found:
            result.append((terms, []))
            continue
        if len(found) > 1:
            raise UserError(f"scheme: two programs in one sum: {print_sum(terms)!r}")
        [(place, phases)] = found
        if is_door(terms[place].name):
            doors.append(terms[place].name)
        others = (*terms[:place], *terms[place + 1 :])
        for phase in phases:
            body = tuple(t for t in phase if t.name != "phase")
            options = tuple(t for t in phase if t.name == "phase")
            result.append(((*body, *others, *options), doors))
    return result


def _phase(plan: Plan, call: Call) -> Phase:
    """The phase with the options that `call` gives, checked."""
    valid = [f.name for f in dataclasses.fields(Phase)][1:]
    options = dict(call.kwargs)
    if call.args:
        raise UserError(f"phase: give the options by name ({', '.join(valid)}), found {call}")
    for key, value in options.items():
        if key not in valid:
            raise UserError(f"phase: unknown option {key!r}.{nearest(key, valid)}")
        _check_option(key, value)
    if "epochs" in options and "steps" in options:
        raise UserError("phase: give epochs or steps, not both")
    if (solve := options.get("solve")) is not None:
        if {p.split("/")[0] for p in plan.trainable} != {"head"}:
            raise UserError(f"phase: solve={solve!r} solves the head alone, found {plan.scheme!r}")
        if "epochs" in options or "steps" in options:
            raise UserError("phase: a solved phase has no epochs or steps")
        options["steps"] = 0
    phase = Phase(plan, **options)
    phase.formats  # noqa: B018  so that rules that do not fit the model are an error here
    return phase


def _check_option(key: str, value: Any) -> None:
    """Raises UserError unless the value is one that the option of a phase can have."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_number = is_number and math.isfinite(value)
    if key in ("epochs", "lr") and not (is_number and value > 0):
        raise UserError(f"phase: {key} must be a number > 0, found {value!r}")
    if key in ("decay", "clip") and not (is_number and value >= 0):
        raise UserError(f"phase: {key} must be a number >= 0, found {value!r}")
    if key == "steps":
        positive_int("phase: steps", value)
    if key == "warmup":
        non_negative_int("phase: warmup", value)
    if key == "reset" and not isinstance(value, bool):
        raise UserError(f"phase: reset must be True or False, found {value!r}")
    if key == "schedule" and not isinstance(value, str):
        raise UserError(f"phase: schedule must be text, found {value!r}")
    if key == "optimizer" and value not in OPTIMIZERS:
        raise UserError(f"phase: unknown optimizer {value!r}.{nearest(str(value), OPTIMIZERS)}")
    if key == "quantize" and not isinstance(value, str):
        raise UserError(f"phase: quantize must be text, such as 'int8', found {value!r}")
    if key == "solve" and value not in SOLVERS:
        raise UserError(f"phase: unknown solver {value!r}.{nearest(str(value), SOLVERS)}")


def lengths(phases: Sequence[Phase], total: int, steps_per_epoch: float) -> list[int]:
    """Number of steps of each phase.

    Args:
      phases: the phases of a run.
      total: number of steps of the run. The phases without a length share evenly the steps that
        the other phases leave; if every phase has a length, `total` is not used.
      steps_per_epoch: number of steps of an epoch.

    Raises:
      UserError: no step is left for a phase without a length.
    """
    given = [_length(phase, steps_per_epoch) for phase in phases]
    without_length = given.count(None)
    left = total - sum(steps or 0 for steps in given)
    if without_length and left < without_length:
        raise UserError(
            f"train.epochs: the run has {total} steps, and the phases with a length take "
            f"{total - left}; {max(left, 0)} steps are left for {without_length} phases without a "
            f"length"
        )
    shares = iter(
        left * (i + 1) // without_length - left * i // without_length for i in range(without_length)
    )
    return [next(shares) if steps is None else steps for steps in given]


def _length(phase: Phase, steps_per_epoch: float) -> int | None:
    if phase.steps is not None or phase.epochs is None:
        return phase.steps
    return max(1, round(phase.epochs * steps_per_epoch))


def print_phases(phases: Sequence[Phase]) -> str:
    """The canonical text of a list of phases; `resolve_phases` resolves it to the same phases."""
    texts = []
    for phase in phases:
        options = {
            f.name: getattr(phase, f.name)
            for f in dataclasses.fields(Phase)[1:]
            if getattr(phase, f.name) != f.default
        }
        if phase.solve:
            options.pop("steps")
        call = Call("phase", (), tuple(sorted(options.items())))
        texts.append(f"{phase.plan.scheme} + {call}" if options else phase.plan.scheme)
    return " >> ".join(texts)
