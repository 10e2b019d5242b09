"""What a run would check before and after its first step, checked from metadata alone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.interpreters import partial_eval

from finetune_jax import tree
from finetune_jax.base_variables import check_weights
from finetune_jax.data.augment import make_input_pipeline
from finetune_jax.data.held_out import require_splits
from finetune_jax.data.splits import past_end
from finetune_jax.devices import device_words, unused_accelerators
from finetune_jax.errors import UserError
from finetune_jax.pretrained.sources import local_file
from finetune_jax.setup import Setup
from finetune_jax.training.audit import STEPS_TO_MOVE
from finetune_jax.training.first_lines import data_line, length_remarks, run_lines, weights_line
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.step import make_loss

_FLAG = re.compile(r"--[\w.]+=(?:'[^']*'|[^\s,;()]+)")
_KEY = re.compile(r"([a-z]\w*\.\w+)")
_WORDS = {"reinitialised": "new", "constant": "constant", "dropped": "dropped"}
_SHOWN = 8  # names that a line lists


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
      about: ``splits``, ``weights``, ``length``, ``batch``, ``scheme`` or ``audit``.
      text: what was found, in a line or several lines.
      problem: whether a run would end with this message.
    """

    about: str
    text: str
    problem: bool = False

    def to_json(self) -> dict[str, Any]:
        """The check, with the first config key and the flags that its text names."""
        key = _KEY.search(self.text) if self.problem else None
        flags = [flag.removesuffix(".") for flag in _FLAG.findall(self.text)]
        found = {"about": self.about, "problem": self.problem, "text": self.text}
        return {**found, "key": key[1] if key else "", "flags": flags}


def dry_run(setup: Setup, *, with_data: bool = True) -> list[Check]:
    """Checks splits, weight file, length, batches and the expectations of the audit.

    Nothing is compiled or downloaded, and no example and no value of a weight is read.

    Args:
      setup: resolved config, which has passed the checks of `open_setup`.
      with_data: False for data that is only planned: then weights may be elsewhere, too.
    """
    checks = _checked("splits", lambda: _splits(setup))
    has_splits = not any(check.problem for check in checks)
    if has_splits:
        checks += _checked("length", lambda: _length(setup))
    checks += _checked("batch", lambda: _batch(setup))
    checks += _checked("weights", lambda: _weights(setup, with_data))
    return checks + _checked("audit", lambda: _audit(setup, has_splits))


def _checked(about: str, check: Callable[[], Iterator[str]]) -> list[Check]:
    found: list[Check] = []
    try:
        found.extend(Check(about, line) for line in check())
    except UserError as error:
        found.append(problem(about, str(error)))
    return found


def problem(about: str, text: str) -> Check:
    """A check that a run would fail with the message `text`."""
    return Check(about, text, problem=True)


def _splits(setup: Setup) -> Iterator[str]:
    data = setup.config.data
    require_splits(setup.source, data)
    yield data_line(setup)
    for name in ("train", "validation", "test"):
        if beyond := past_end(data[name], setup.source.splits):
            yield f"data.{name}: {beyond}; the run takes those that there are"


def _length(setup: Setup) -> Iterator[str]:
    examples = setup.examples("train")
    lengths = setup.phase_steps(examples)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    yield from run_lines(setup, lengths, examples)
    yield from length_remarks(setup, starts, lengths, examples)


def _batch(setup: Setup) -> Iterator[str]:
    train, devices = setup.config.train, jax.device_count()
    micro = train.batch_size // train.accumulate
    parts = f" in {train.accumulate} micro-batches of {micro}" if train.accumulate > 1 else ""
    yield (
        f"batch: {train.batch_size}{parts}, {micro // devices} a device at a time on "
        f"{device_words()}; evaluation {setup.config.eval.batch_size}"
    )
    yield from unused_accelerators()


def _weights(setup: Setup, with_data: bool) -> Iterator[str]:
    path = setup.config.pretrained.path
    if not path:
        yield weights_line(setup, {"file": None})
        return
    try:
        manifest = check_weights(setup) if with_data or _is_here(path) else None
    except UserError as error:
        text = str(error)
        raise UserError(text if "pretrained." in text else f"pretrained.path: {text}") from None
    if manifest is None:
        yield (
            f"weights: {path} is not on this machine, and is compared with the model once it is; "
            f"to fetch it now: finetune-jax pretrained inspect {path}"
        )
        return
    found = manifest.to_json()
    yield weights_line(setup, found)
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in manifest.rows:
        if row.decision in _WORDS:
            name = row.source_name if row.decision == "dropped" else row.leaf
            reasons.setdefault((row.decision, row.reason), []).append(str(name))
    for (decision, reason), names in reasons.items():
        yield f"weights: {_WORDS[decision]}: {_some(names)}: {reason}"


def _is_here(source: str) -> bool:
    try:
        path = local_file(source)
    except UserError:
        return False
    return path is not None and path.exists()


def _audit(setup: Setup, has_splits: bool) -> Iterator[str]:
    examples = setup.examples("train") if has_splits else 0
    lengths = setup.phase_steps(examples) if examples else [0] * len(setup.phases)
    for index, (phase, steps) in enumerate(zip(setup.phases, lengths, strict=True)):
        plan = phase.plan
        frozen = len(plan.leaves) - len(plan.trainable)
        kept = len(plan.statistics) - len(plan.tracked_statistics)
        few = (
            f", which is not demanded after {steps} steps, fewer than {STEPS_TO_MOVE}"
            if 0 < steps < STEPS_TO_MOVE
            else ""
        )
        name = f"phase {index + 1}: " if len(setup.phases) > 1 else ""
        yield (
            f"audit: {name}{len(plan.trainable)} leaves must move{few}; {frozen} leaves and {kept} "
            f"statistics must keep every bit; {len(plan.tracked_statistics)} statistics may change"
        )
        if phase.solve or steps < STEPS_TO_MOVE:
            continue
        still = sorted(p for p, rate in tree.flatten(plan.of_trainable("lr")).items() if not rate)
        if still and not plan.measured:
            raise UserError(
                f"scheme: {_some(still)} would train with a learning rate of 0, do not move, and "
                f"fail the audit; leave these leaves out of --config.scheme"
            )
        if setup.task.teacher and not setup.teacher:
            continue  # the loss needs the teacher, whose weights are not read here
        if still := sorted(unreached(PhaseRun(setup, index))):
            raise UserError(
                f"scheme: no gradient reaches {_some(still)}, because the output of the model does "
                f"not depend on these leaves; they would fail the audit: leave them out of "
                f"--config.scheme"
            )


def unreached(phase: PhaseRun) -> set[str]:
    """Paths of trainable leaves that the loss does not depend on."""
    setup = phase.setup
    state, frozen = phase.abstract_state()
    pipeline = make_input_pipeline(setup.preprocess, setup.config.data.augment)
    loss = make_loss(phase.model, setup.task, phase.plan, pipeline, setup.teacher)

    def of_params(params: dict[str, Any], *rest: Any) -> jax.Array:
        state, *others = rest
        return loss(params, state.stats, state.hyper, *others)[0]

    batch = phase.abstract_batch(setup.config.train.batch_size // setup.config.train.accumulate)
    traced = jax.make_jaxpr(of_params)(state.params, state, frozen, batch, jax.random.key(0))
    _, used = partial_eval.dce_jaxpr(traced.jaxpr, [True])
    paths = [tree.key_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.params)]
    return {path for path, is_used in zip(paths, used, strict=False) if not is_used}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
