"""Phases: a run as a list of schemes, each with its length and rates; and programs that make them.

``linear_probe + phase(epochs=2) >> full + phase(lr=0.1)`` trains the head for two epochs, then
everything for the rest of the run at a tenth of its learning rate. A program such as ``lp_ft`` or
``gradual(epochs=1)`` stands for such a list; terms beside it (``gradual + discriminative(2.6)``)
join every phase it makes.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from finetune_jax import tree
from finetune_jax.errors import UserError, nearest
from finetune_jax.grammar import Call, Sum, parse, parse_sequence, print_sum
from finetune_jax.schemes.plan import Plan
from finetune_jax.schemes.resolve import Scheme, resolve

SOLVERS = ("lbfgs", "ridge")
OPTIMIZERS = ("sgd", "adamw")


@dataclasses.dataclass(frozen=True)
class Phase:
    """A span of steps under one plan.

    Attributes:
      plan: what trains.
      epochs: length in epochs; None, with `steps` None too, takes an equal share of what the other
        phases leave of the run.
      steps: length in steps, instead of `epochs`.
      lr: factor on the run's learning rate.
      schedule: learning rate schedule; None takes the run's.
      warmup: warm-up steps; None takes the run's in the first phase and 0 in later ones.
      reset: start with a fresh optimizer state instead of keeping the survivors'.
      optimizer: ``sgd`` or ``adamw``; None takes the run's. After a change of optimizer all moments
        start fresh.
      decay: weight decay; None takes the run's.
      clip: limit of the gradient norm, 0 for none; None takes the run's.
      solve: ``lbfgs`` or ``ridge``: the head is solved on frozen features instead of trained.
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

    def to_json(self) -> dict[str, Any]:
        """Options, and the plan's JSON under ``plan``."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**options, "plan": self.plan.to_json()}


def lp_ft(stages: Sequence[str], blocks: Sequence[str], solve: str = "lbfgs") -> list[str]:
    """Linear probe to convergence, then everything (Kumar et al. 2022, arXiv 2202.10054)."""
    del stages, blocks
    return [f"linear_probe + phase(solve={solve!r})", "full"]


def _groups(stages: Sequence[str], blocks: Sequence[str], count: int) -> list[list[str]]:
    """Stages in `count` runs of about equal length; what is before the blocks joins the first."""
    body = [[b] for b in blocks]
    body[0] = [*stages[: stages.index(blocks[0])], *body[0]]
    count = min(count or len(body), len(body))
    edges = [round(i * len(body) / count) for i in range(count + 1)]
    runs = [sum(body[a:b], []) for a, b in zip(edges, edges[1:], strict=False)]
    return [*runs, list(stages[stages.index(blocks[-1]) + 1 :])]


def _stages(names: Sequence[str]) -> str:
    return f"stages({', '.join(map(repr, names))})"


def gradual(
    stages: Sequence[str],
    blocks: Sequence[str],
    epochs: float = 1.0,
    order: str = "top_down",
    groups: int = 0,
) -> list[str]:
    """Gradual unfreezing: one group of blocks more per phase (Howard & Ruder 2018, 1801.06146).

    Args:
      stages: of the model.
      blocks: of the model.
      epochs: of each phase but the last, which takes the rest of the run.
      order: ``top_down`` starts with what follows the blocks; ``bottom_up`` with the first blocks,
        and the head from the start.
      groups: number of groups the blocks are cut into; 0 gives every block its own.
    """
    if order not in ("top_down", "bottom_up"):
        raise UserError(
            f"gradual: unknown order {order!r}.{nearest(order, ('top_down', 'bottom_up'))}"
        )
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 0:
        raise UserError(f"gradual: groups must be a whole number >= 0, found {groups!r}")
    *body, top = _groups(stages, blocks, groups)
    body = body[::-1] if order == "top_down" else body
    phases = [top] if order == "top_down" else []
    for run in body:
        before = phases[-1] if phases else top
        phases.append(sorted([*before, *run], key=stages.index))
    texts = [_stages(p) for p in phases]
    return [*(f"{t} + phase(epochs={epochs!r})" for t in texts[:-1]), texts[-1]]


def chain_thaw(stages: Sequence[str], blocks: Sequence[str], epochs: float = 1.0) -> list[str]:
    """Head, then each stage alone from the first, then everything (Felbo et al. 2017, 1708.00524).

    Every phase starts with a fresh optimizer; the last takes the rest of the run.
    """
    del blocks
    singles = ["head", *stages[:-1]]
    option = f"phase(epochs={epochs!r}, reset=True)"
    return [*(f"{_stages([s])} + {option}" for s in singles), "full + phase(reset=True)"]


def fine_tune(
    stages: Sequence[str], blocks: Sequence[str], freeze_epochs: float = 1.0
) -> list[str]:
    """fastai's ``fine_tune``: head and norms for some epochs, then everything at half the rate.

    One-cycle in both phases, of the rate alone (fastai also cycles the momentum); rates
    ``slice(base)``, then ``slice(base / 200, base / 2)``.
    """
    del stages, blocks
    return [
        f"head + norm(lr=0.1) + phase(epochs={freeze_epochs!r}, schedule='onecycle(pct=0.99)')",
        "full + slice(0.01, 1.0) + phase(lr=0.5, schedule='onecycle(pct=0.3, div=5)', reset=True)",
    ]


PROGRAMS: dict[str, Callable[..., list[str]]] = {
    f.__name__: f for f in (lp_ft, gradual, chain_thaw, fine_tune)
}


def resolve_phases(
    scheme: Scheme,
    stages: Sequence[str],
    params: tree.Tree,
    batch_stats: tree.Tree,
    **options: Any,
) -> tuple[Phase, ...]:
    """Resolves what `config.scheme` says, one phase or many; see `resolve` for the arguments.

    Raises:
      UserError: as `resolve`, and for bad phase options.
    """
    if not isinstance(scheme, str) or scheme.lstrip().startswith(("[", "(")):
        return (Phase(resolve(scheme, stages, params, batch_stats, **options)),)
    phases: list[Phase] = []
    deltas: tuple[Any, ...] = ()
    for terms in _expand(parse_sequence(scheme), stages):
        body = tuple(t for t in terms if t.name != "phase")
        settings = [t for t in terms if t.name == "phase"]
        if not body or len(settings) > 1:
            raise UserError(f"scheme: a phase is a sum of schemes with at most one phase(...), "
                            f"found {print_sum(terms)!r}")  # fmt: skip
        plan = resolve(body, stages, params, batch_stats, deltas=deltas, **options)
        deltas = plan.deltas
        phases.append(_phase(plan, settings[0] if settings else Call("phase"), print_sum(terms)))
    return tuple(phases)


def _expand(sums: Sequence[Sum], stages: Sequence[str]) -> list[Sum]:
    from finetune_jax.schemes.outline import Outline

    result: list[Sum] = []
    for terms in sums:
        programs = [t for t in terms if t.name in PROGRAMS]
        if not programs:
            result.append(terms)
            continue
        if len(programs) > 1:
            raise UserError(f"scheme: two programs in one sum: {print_sum(terms)!r}")
        program, others = programs[0], [t for t in terms if t.name not in PROGRAMS]
        blocks = Outline(tuple(stages), {}).blocks
        function = PROGRAMS[program.name]
        try:
            inspect.signature(function).bind(stages, blocks, *program.args, **dict(program.kwargs))
        except TypeError as error:
            names = list(inspect.signature(function).parameters)[2:]
            raise UserError(
                f"scheme {program}: {error}; {program.name} takes ({', '.join(names)})"
            ) from None
        for text in function(tuple(stages), blocks, *program.args, **dict(program.kwargs)):
            made = parse(text)
            options = tuple(t for t in made if t.name == "phase")
            body = tuple(t for t in made if t.name != "phase")
            result.append((*body, *others, *options))
    return result


def _phase(plan: Plan, call: Call, text: str) -> Phase:
    valid = [f.name for f in dataclasses.fields(Phase)][1:]
    options = dict(call.kwargs)
    if call.args:
        raise UserError(f"phase: give its options by name ({', '.join(valid)}), found {call}")
    for key, value in options.items():
        if key not in valid:
            raise UserError(f"phase: unknown option {key!r}.{nearest(key, valid)}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        number = number and math.isfinite(value)
        if key in ("epochs", "lr") and not (number and value > 0):
            raise UserError(f"phase: {key} must be a number > 0, found {value!r}")
        if key in ("decay", "clip") and not (number and value >= 0):
            raise UserError(f"phase: {key} must be a number >= 0, found {value!r}")
        least = {"steps": 1, "warmup": 0}.get(key)
        if least is not None and not (isinstance(value, int) and number and value >= least):
            raise UserError(f"phase: {key} must be a whole number >= {least}, found {value!r}")
        if key == "reset" and not isinstance(value, bool):
            raise UserError(f"phase: reset must be True or False, found {value!r}")
        if key == "schedule" and not isinstance(value, str):
            raise UserError(f"phase: schedule must be text, found {value!r}")
        if key == "optimizer" and value not in OPTIMIZERS:
            raise UserError(f"phase: unknown optimizer {value!r}.{nearest(str(value), OPTIMIZERS)}")
    if "epochs" in options and "steps" in options:
        raise UserError("phase: give epochs or steps, not both")
    solve = options.get("solve")
    if solve is not None:
        if solve not in SOLVERS:
            raise UserError(f"phase: unknown solver {solve!r}.{nearest(str(solve), SOLVERS)}")
        if {p.split("/")[0] for p in plan.trainable} != {"head"}:
            raise UserError(f"phase: solve={solve!r} solves the head alone, found {plan.scheme!r}")
        if "epochs" in options or "steps" in options:
            raise UserError("phase: a solved phase has no epochs or steps")
        options["steps"] = 0
    return Phase(plan, **options)


def lengths(phases: Sequence[Phase], total: int, steps_per_epoch: float) -> list[int]:
    """Steps of each phase, for a run of `total` steps.

    Phases without a length share evenly what the others leave; if all have one, `total` is not
    used.

    Raises:
      UserError: nothing is left for a phase without a length.
    """
    given = [
        p.steps if p.steps is not None
        else None if p.epochs is None
        else max(1, round(p.epochs * steps_per_epoch))
        for p in phases
    ]  # fmt: skip
    open_phases = [i for i, n in enumerate(given) if n is None]
    left = total - sum(n or 0 for n in given)
    if open_phases and left < len(open_phases):
        raise UserError(
            f"train.epochs: the run has {total} steps, of which the phases with a length take "
            f"{total - left}; {left} are left for {len(open_phases)} others"
        )
    for place, i in enumerate(open_phases):
        share = left * (place + 1) // len(open_phases) - left * place // len(open_phases)
        given[i] = share
    return [int(n) for n in given]


def print_phases(phases: Sequence[Phase]) -> str:
    """The canonical text of a list of phases; `resolve_phases` reads it back."""
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
