"""A trained model with weights in few bits, compared with the same model in float32."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune_jax import tree
from finetune_jax.artifact import Artifact, save_artifact
from finetune_jax.data.skip import Subset
from finetune_jax.deltas.adapted import largest_inputs
from finetune_jax.errors import UserError
from finetune_jax.evaluation.evaluator import Evaluator
from finetune_jax.evaluation.scores import forward_all
from finetune_jax.evaluation.step import make_forward
from finetune_jax.files import read_json, write_json
from finetune_jax.locks import NAME as LOCK
from finetune_jax.metrics.probes import sample
from finetune_jax.progress import each
from finetune_jax.quantization import (
    STEPS,
    Format,
    formats_by_leaf,
    is_weight,
    parse_rules,
    quantize,
    quantized_leaves,
)

FILE = "quantize.json"
_TIMED_CALLS = 9
_CALIBRATION = 256  # examples on which the scales of inputs are measured


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """A model in float32 and some examples, on which quantized forms of it are compared with it.

    Attributes:
      evaluator: the model and its data.
      artifact: the artifact of the model.
      examples: the examples.
    """

    evaluator: Evaluator
    artifact: Artifact
    examples: Subset

    @classmethod
    def open(cls, evaluator: Evaluator, split: str, limit: int = 0) -> Comparison:
        """Chooses the examples.

        Args:
          evaluator: the model of a run, and its data.
          split: ``train``, ``validation`` or ``test``.
          limit: number of examples at most, which are a fixed random sample; 0 for all.

        Raises:
          UserError: weights that are quantized already, or an unknown split.
        """
        artifact, whole = evaluator.artifact, evaluator.examples(split)
        if artifact is None:
            raise ValueError("expected the evaluator of a run")
        if quantized_leaves(artifact.variables["params"]):
            raise UserError(
                "the weights of this model are quantized already; expected a run with weights in "
                "float32"
            )
        return cls(evaluator, artifact, Subset(whole, sample(len(whole), limit)))

    @functools.cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """The weights that can be quantized, by path; those of deltas are not among them."""
        leaves = tree.flatten(self.artifact.variables["params"])
        added = tuple(delta.path("") for delta in self.artifact.model.deltas)
        return {p: x for p, x in leaves.items() if is_weight(p, x) and not p.startswith(added)}

    @functools.cached_property
    def logits(self) -> np.ndarray:
        """Outputs of the model in float32, f32[n, …]."""
        return self.outputs(self.artifact.variables)

    @functools.cached_property
    def _forward(self) -> Callable[..., Any]:
        return jax.jit(make_forward(self.artifact.model, self.artifact.preprocess.device))

    @functools.cached_property
    def input_scales(self) -> dict[str, float]:
        """Static scales of the inputs of layers by the paths of their weights.

        They are measured on training examples: the largest absolute input of each example, averaged
        over the examples.
        """
        whole = self.evaluator.examples("train")
        some = Subset(whole, sample(len(whole), _CALIBRATION))
        model, device = self.artifact.model, self.artifact.preprocess.device
        forward = jax.jit(lambda v, batch: largest_inputs(model, v, device(batch)))
        found = self._over(some, lambda batch: forward(self.artifact.variables, batch))
        return {
            f"{module}/{name}": float(found[module].mean()) / STEPS
            for module, name in (path.rsplit("/", 1) for path in self.weights)
            if module in found
        }

    def quantized(self, formats: Mapping[str, Format]) -> dict[str, Any]:
        """The variables with some weights quantized; `formats` has their formats by path."""
        variables = self.artifact.variables
        static = any(format_.inputs == "static" for format_ in formats.values())
        scales = self.input_scales if static else {}
        params = jax.jit(lambda params: quantize(params, formats, scales))(variables["params"])
        return {**variables, "params": jax.tree.map(np.asarray, params)}

    def outputs(self, variables: dict[str, Any]) -> np.ndarray:
        """Outputs f32[n, …] of the model with other variables."""
        placed = jax.device_put(variables)
        found: np.ndarray = self._over(self.examples, lambda batch: self._forward(placed, batch))
        return found

    def _over(self, examples: Subset, forward: Callable[[Any], Any]) -> Any:
        """A function of batches, called on some examples; see `forward_all`."""
        evaluator = self.evaluator
        return forward_all(
            forward, examples, evaluator.encode,
            batch_size=evaluator.batch_size, place=evaluator.place,
        )  # fmt: skip

    def differences(self, logits: np.ndarray) -> dict[str, Any]:
        """How far outputs are from those in float32: a part of what `compare` returns."""
        gaps = np.abs(logits - self.logits)
        answers = [
            [{**r}.get("label", {**r}.get("labels")) for r in self.artifact.task.read(outputs)]
            for outputs in (self.logits, logits)
        ]
        same = [a == b for a, b in zip(*answers, strict=True) if a is not None]
        return {
            "agreement": sum(same) / len(same) if same else None,
            "largest_logit_difference": float(gaps.max()),
            "mean_logit_difference": float(gaps.mean()),
            "largest_logit": float(np.abs(self.logits).max()),
        }

    def compare(self, formats: Mapping[str, Format]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Compares the model with a quantized form of it.

        Args:
          formats: format of each weight to quantize, by path.

        Returns:
          (variables of the quantized form, figures). The figures are ``n``; ``scores`` and
          ``scores_float32``, the task's report; ``agreement``, the share of examples with the same
          label, None for a task without labels; ``largest_logit_difference``,
          ``mean_logit_difference`` and ``largest_logit``; ``bytes`` and ``bytes_float32`` of all
          variables; ``weight_bytes`` and ``weight_bytes_float32`` of the quantized weights; and
          ``latency_ratio`` by batch size, the time of a batch over that of the model in float32.
        """
        before, after = self.artifact.variables, self.quantized(formats)
        codes = {
            path: leaf
            for path, leaf in tree.flatten(after["params"]).items()
            if path in formats or path.rpartition("/")[0] in formats
        }
        return after, {
            "n": len(self.examples),
            "scores": self.scores_of(after),
            "scores_float32": self.scores_of(before),
            **self.differences(self.outputs(after)),
            "bytes": tree.nbytes(after),
            "bytes_float32": tree.nbytes(before),
            "weight_bytes": tree.nbytes(codes),
            "weight_bytes_float32": tree.nbytes({p: self.weights[p] for p in formats}),
            "latency_ratio": self._latency(before, after),
        }

    def scores_of(self, variables: dict[str, Any]) -> dict[str, Any]:
        """The task's report on the examples, of the model with other variables."""
        evaluator = dataclasses.replace(self.evaluator, variables=jax.device_put(variables))
        return evaluator.scores(evaluator.observe_examples(self.examples))

    def _latency(self, before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
        """Median time of a batch with `after` over that with `before`; the calls alternate."""
        ratios, example = {}, self.evaluator.encode(self.examples[0])
        forms = [jax.device_put(variables) for variables in (before, after)]
        for size in sorted({1, self.evaluator.batch_size}):
            batch = {name: np.stack([np.asarray(x)] * size) for name, x in example.items()}
            seconds: list[list[float]] = [[], []]
            for call in range(_TIMED_CALLS + 1):
                for form, times in zip(forms, seconds, strict=True):
                    began = time.perf_counter()
                    jax.block_until_ready(self._forward(form, batch))
                    if call:  # the first call compiles
                        times.append(time.perf_counter() - began)
            ratios[str(size)] = statistics.median(seconds[1]) / statistics.median(seconds[0])
        return ratios


def quantize_run(
    comparison: Comparison, how: str, split: str, workdir: Path, output: Path
) -> dict[str, Any]:
    """Quantizes the weights of a run and writes them as an artifact.

    Args:
      comparison: the model of the run, and the examples to compare on.
      how: rules, see `finetune_jax.quantization.parse_rules`.
      split: name of the split of the examples.
      workdir: folder of the run.
      output: folder to write, new or empty: ``artifact/``, ``config.json`` and ``quantize.json``.

    Returns:
      The content of ``quantize.json``: ``how``, ``run``, ``split``, and the figures of
      `Comparison.compare`.

    Raises:
      UserError: rules that do not fit the model, or an output folder with content.
    """
    require_empty(output)
    formats = formats_by_leaf(parse_rules(how, "--how"), comparison.weights, "--how")
    if not formats:
        raise UserError(f"--how={how}: the rules keep every weight; expected a format")
    variables, figures = comparison.compare(formats)
    found = quantized_leaves(variables["params"])
    card = comparison.artifact.card
    report = {"how": how, "run": workdir.name, "split": split, **figures}
    save_artifact(
        output / "artifact",
        variables=variables,
        model=card["model"],
        deltas=comparison.artifact.model.deltas,
        task=comparison.artifact.task,
        preprocess=comparison.artifact.preprocess,
        plan=card["plan"],
        base=card["base"],
        scores=card.get("scores", {}),
        contents="all",
        changed=set(),
        formats={path: str(formats[path]) for path in found},
        quantization=report,
        made_of=card.get("made_of"),
        accepted=card.get("accepted", ()),
    )
    write_json(output / "config.json", read_json(workdir / "config.json"))
    write_json(output / FILE, report)
    return report


def sensitivity(comparison: Comparison, format_: Format) -> list[dict[str, Any]]:
    """What the quantization of each stage alone changes.

    Returns:
      A dict per stage with weights, in forward order: ``stage``; ``saved_bytes``; the metric of the
      task under its name; and ``agreement``, ``largest_logit_difference`` and
      ``mean_logit_difference`` as `Comparison.compare` gives them.
    """
    metric = comparison.artifact.task.metric
    rows = []
    for stage in each(_stages(comparison), "stages"):
        variables = comparison.quantized(_in_stage(comparison, stage, format_))
        saved = tree.nbytes(comparison.artifact.variables) - tree.nbytes(variables)
        figures = comparison.differences(comparison.outputs(variables))
        del figures["largest_logit"]
        score = comparison.scores_of(variables)[metric]
        rows.append({"stage": stage, "saved_bytes": saved, metric: score, **figures})
    return rows


def _stages(comparison: Comparison) -> list[str]:
    """The stages with weights, in forward order."""
    return list(dict.fromkeys(path.split("/", 1)[0] for path in comparison.weights))


def _in_stage(comparison: Comparison, stage: str, format_: Format) -> dict[str, Format]:
    """The formats by leaf that quantize one stage alone."""
    return {path: format_ for path in comparison.weights if path.split("/", 1)[0] == stage}


def within_budget(
    comparison: Comparison, formats: Sequence[Format], budget: int
) -> tuple[str, list[dict[str, Any]]]:
    """Chooses a format for each stage, so that all variables take at most `budget` bytes.

    All stages start in float32. The format that adds least to the mean logit difference for each
    byte that it saves is taken next, until the bytes fit; the differences of the stages alone are
    added up.

    Args:
      comparison: the model and the examples.
      formats: formats to choose from.
      budget: bytes of all variables.

    Returns:
      (the rules as text, the rows of `sensitivity` with ``format``).

    Raises:
      UserError: not even the smallest choice fits.
    """
    total = tree.nbytes(comparison.artifact.variables)
    most: dict[str, int] = {}
    for format_, stage in itertools.product(formats, _stages(comparison)):
        saved = total - tree.nbytes(comparison.quantized(_in_stage(comparison, stage, format_)))
        most[stage] = max(saved, most.get(stage, 0))
    smallest = total - sum(most.values())
    if smallest > budget:
        raise UserError(
            f"--budget={budget}: the smallest choice of {', '.join(map(str, formats))} takes "
            f"{smallest} bytes"
        )
    rows = [
        {**row, "format": str(format_)}
        for format_ in formats
        for row in sensitivity(comparison, format_)
    ]
    options: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        options.setdefault(row["stage"], []).append(row)
    start: dict[str, Any] = {"saved_bytes": 0, "mean_logit_difference": 0.0, "format": "keep"}
    chosen = dict.fromkeys(options, start)

    def price(stage: str, row: dict[str, Any]) -> float:
        now = chosen[stage]
        more = row["mean_logit_difference"] - now["mean_logit_difference"]
        return float(more / (row["saved_bytes"] - now["saved_bytes"]))

    while total - sum(row["saved_bytes"] for row in chosen.values()) > budget:
        steps = [
            (stage, row)
            for stage, rows_of_stage in options.items()
            for row in rows_of_stage
            if row["saved_bytes"] > chosen[stage]["saved_bytes"]
        ]
        stage, row = min(steps, key=lambda step: price(*step))
        chosen[stage] = row
    return ", ".join(f"{stage}={row['format']}" for stage, row in chosen.items()), rows


def require_empty(folder: Path) -> None:
    """Raises UserError for a folder that holds something, or a path that is no folder."""
    content = list(folder.iterdir()) if folder.is_dir() else [folder] if folder.exists() else []
    if not all(path.name.startswith(LOCK) for path in content):
        raise UserError(f"--output={folder}: expected a new or an empty folder")
