"""The artifact: a folder that is enough to predict anywhere. safetensors and JSON, no code.

``artifact.json`` holds the model's name and size, ordered class names, preprocessing, the plan,
the fingerprint of the base and the scores, and carries a checksum of all this.
``model.safetensors`` holds all leaves, or only the leaves that may differ from the base.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune_jax import schema as checks
from finetune_jax import tasks, tree
from finetune_jax.artifact import schema, weights
from finetune_jax.artifact.providers import check_providers, providers_of
from finetune_jax.data import preprocess as preprocesses
from finetune_jax.data.batches import Encoder
from finetune_jax.data.cut_texts import cut_line
from finetune_jax.data.images import BadImage
from finetune_jax.data.preprocess import Preprocess, require_vocabulary
from finetune_jax.data.skip import listed
from finetune_jax.data.text import TextPreprocess
from finetune_jax.deltas import Adapted, Delta, from_json
from finetune_jax.errors import UserError
from finetune_jax.files import plain, seal, write_json
from finetune_jax.models import StagedModel, build
from finetune_jax.pretrained import save_native
from finetune_jax.pretrained.values import require_good_values
from finetune_jax.progress import each, say
from finetune_jax.quantization import quantized_leaves
from finetune_jax.tasks import Task

Item = str | Path | np.ndarray | dict[str, Any]
"""An input to predict: an image file, a text, an image's pixels, or an example by column."""


@dataclasses.dataclass(frozen=True, eq=False)
class Artifact:
    """A fine-tuned model, ready to predict.

    Attributes:
      model: staged model with its deltas.
      variables: ``{"params": …, "batch_stats": …}``.
      task: the task, with ordered class names.
      preprocess: preprocessing of the training run.
      card: content of ``artifact.json``.
    """

    model: Adapted
    variables: dict[str, Any]
    task: Task
    preprocess: Preprocess
    card: dict[str, Any]

    @classmethod
    def load(
        cls, path: str | Path, base: str | Path = "", allow_imports: Iterable[str] = ()
    ) -> Artifact:
        """Reads an artifact; the folder may have been moved since it was written.

        Args:
          path: the artifact, or a run's folder with ``artifact/`` in it.
          base: the pretrained weight file; needed for a ``delta`` artifact only.
          allow_imports: top-level packages whose code may run, for an artifact with doors, see
            `finetune_jax.doors`.

        Raises:
          UserError: no artifact there, a damaged artifact, a ``delta`` artifact without its base,
            or a door of a package that is not allowed.
        """
        folder = Path(path)
        if (folder / "artifact").is_dir():
            folder = folder / "artifact"
        card = schema.read_card(folder)
        check_providers(card, allow_imports, str(folder))
        try:
            task, preprocess, model = _parts(folder, card)
            deltas = tuple(from_json(delta) for delta in card.get("deltas", ()))
            variables = weights.read_variables(folder, card, model, deltas, str(base))
        except UserError as error:
            # The message has a key or a file. The path of the artifact is added, because a
            # command may read several artifacts.
            text = str(error)
            raise UserError(text if str(folder) in text else f"{folder}: {text}") from None
        return cls(Adapted(model, deltas), variables, task, preprocess, card)

    @property
    def encode(self) -> Encoder:
        """Function of a source's example to the arrays of a batch: inputs and targets."""
        return Encoder((self.preprocess, self.task))

    @functools.cached_property
    def _forward(self) -> Callable[[dict[str, Any], dict[str, Any]], jax.Array]:
        """The forward pass, compiled once for each shape of a batch."""
        return jax.jit(lambda v, batch: self.model.apply(v, self.preprocess.device(batch)))

    @functools.cached_property
    def _on_device(self) -> dict[str, Any]:
        return jax.device_put(self.variables)

    def outputs(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """Returns the model's outputs, f32[batch, head size] for most tasks.

        Args:
          batch: preprocessed inputs by name, such as ``image`` uint8[batch, size, size, 3].
        """
        return np.asarray(self._forward(self._on_device, batch))

    def predict(
        self, items: Sequence[Item], batch_size: int = 32, *, on_bad_image: str = "error"
    ) -> list[dict[str, Any]]:
        """Predicts in batches of one shape; the last batch is padded.

        Args:
          items: what to predict. A text is an image file for a model of images and the text itself
            for a model of texts; two of them are separated by a tab. Pixels are
            uint8[height, width, 3], or floats in [0, 1] of the same shape, which are rounded to 8
            bits. A dict is an example as a data source gives it, with the columns that
            `preprocess` reads.
          batch_size: inputs per call of the compiled model. Up to a quarter of this number of
            items are predicted one by one; so an artifact compiles two programs in its life, one
            for few items and one for many.
          on_bad_image: ``error``, or ``skip``: images that cannot be decoded are counted, printed
            and left out of the result.

        Returns:
          A dict per item: what the task reads from the outputs, such as ``label`` and
          ``probabilities``. For a file or a text the dict begins with the item itself, under
          ``image`` or ``text``.

        Raises:
          UserError: images that cannot be decoded, pixels of another shape or range, or outputs
            that are not finite.
        """
        return [
            {self.preprocess.kind: str(item), **reading}
            if isinstance(item := items[number], str | Path)
            else reading
            for number, reading in self.readings(items, batch_size, on_bad_image=on_bad_image)
        ]

    def readings(
        self, items: Sequence[Item], batch_size: int = 32, *, on_bad_image: str = "error"
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields (number of the item, what the task reads from its outputs), in their order.

        The method takes the arguments of `predict` and raises the same errors. An error about a bad
        item is raised only after all items were read, so that the message has all bad items. A
        caller therefore uses no reading before the iterator is exhausted.
        """
        if batch_size < 1:
            raise UserError(f"batch_size: expected a positive number, found {batch_size}")
        checks.text(choices=("error", "skip"))(on_bad_image, "on_bad_image")
        size = 1 if len(items) <= max(1, batch_size // 4) else batch_size
        bad: list[str] = []
        infinite: list[str] = []
        cut = 0
        for numbers, found in self._batches(items, size):
            bad += [str(x) for x in found if isinstance(x, BadImage)]
            good = [(i, x) for i, x in zip(numbers, found, strict=True) if isinstance(x, dict)]
            if not good or (bad and on_bad_image == "error"):
                continue  # the other items are read for the message only
            if isinstance(self.preprocess, TextPreprocess):
                cut += sum(self.preprocess.cuts(self.example(items[i]), x) for i, x in good)
            inputs = [x for _, x in good]
            inputs += [inputs[0]] * (size - len(inputs))
            batch = {name: np.stack([x[name] for x in inputs]) for name in inputs[0]}
            outputs = self.outputs(batch)
            finite = np.isfinite(outputs).reshape(size, -1).all(1)
            infinite += [_name(items[i], i) for row, (i, _) in enumerate(good) if not finite[row]]
            if not infinite:  # nothing is read from outputs that are not finite
                readings = self.task.read(outputs)
                yield from ((i, r) for (i, _), r in zip(good, readings, strict=False))
        _require_good(len(items), bad, infinite, on_bad_image)
        if line := cut_line(cut, len(items), self.preprocess.size):
            say(line)

    def _batches(
        self, items: Sequence[Item], size: int
    ) -> Iterator[tuple[range, list[dict[str, np.ndarray] | BadImage]]]:
        """Yields the numbers of a batch's items and their inputs; threads decode the next batch."""
        starts = range(0, len(items), size)
        # A tokenizer has threads of its own.
        pool = ThreadPoolExecutor(1 if self.preprocess.kind == "text" else os.cpu_count())

        def submit(start: int) -> list[Future[Any]]:
            numbers = range(start, min(start + size, len(items)))
            return [pool.submit(self._input, items[i]) for i in numbers]

        try:
            coming = submit(0)
            for start in each(starts, "predicting") if len(starts) > 1 else starts:
                ready, coming = coming, submit(start + size)
                yield range(start, start + len(ready)), [future.result() for future in ready]
        finally:
            pool.shutdown(cancel_futures=True)

    def _input(self, item: Item) -> dict[str, np.ndarray] | BadImage:
        """The preprocessed input of an item, or what is wrong with its image."""
        try:
            return self.preprocess.host(self.example(item))
        except BadImage as error:  # the message begins with the path
            return error

    def example(self, item: Item) -> dict[str, Any]:
        """The example of an item, by column."""
        if isinstance(item, dict):
            return item
        if not isinstance(item, np.ndarray):
            return self.preprocess.read(str(item))
        if self.preprocess.kind != "image":
            raise UserError(f"expected inputs of the kind {self.preprocess.kind!r}, found an array")
        return {"image": _pixels(item)}


def _parts(folder: Path, card: dict[str, Any]) -> tuple[Task, Preprocess, StagedModel]:
    """The task, the preprocessing and the model of a checked card, which fit each other."""
    task = tasks.from_json(card["task"])
    preprocess = preprocesses.from_json(card["preprocess"], folder)
    schema.require_consistent(card, task, preprocess, str(folder))
    settings = {key: value for key, value in card["model"].items() if key != "family"}
    model = build(**settings)
    require_vocabulary(preprocess, model)
    return task, preprocess, task.adapt(model)


def _require_good(count: int, bad: list[str], infinite: list[str], on_bad_image: str) -> None:
    """Raises UserError, or says what was left out, after all of `count` items were read."""
    if bad and count == 1:
        raise BadImage(bad[0])
    if bad and on_bad_image == "error":
        title = f"{len(bad)} of {count} images cannot be read, and nothing is predicted"
        raise UserError(listed(title, bad) + "\nwith on_bad_image=skip, these images are left out")
    if infinite:
        raise UserError(
            f"the model's outputs are NaN or infinite for {len(infinite)} of {count} inputs, "
            f"the first is {infinite[0]}; nothing is predicted"
        )
    if bad and len(bad) == count:
        raise UserError(f"none of {count} images can be read; the first: {bad[0]}")
    if bad:
        say(listed(f"{len(bad)} of {count} images left out (on_bad_image=skip)", bad))


def _name(item: Item, number: int) -> str:
    """An item in a message: its file or text, or its number."""
    return repr(str(item)) if isinstance(item, str | Path) else f"number {number}"


def _pixels(image: np.ndarray) -> np.ndarray:
    """uint8[height, width, 3] of pixels in 8 bits or of floats in [0, 1]."""
    if image.ndim != 3 or image.shape[-1] != 3:
        raise UserError(f"expected an image [height, width, 3], found the shape {image.shape}")
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise UserError(f"expected pixels uint8, or floats in [0, 1], found {image.dtype}")
    if image.size and not (image.min() >= 0 and image.max() <= 1):  # false for NaN, too
        raise UserError(
            f"expected floats in [0, 1], found values from {image.min():.4g} to {image.max():.4g}"
        )
    return np.round(image * 255).astype(np.uint8)


def save_artifact(
    folder: Path,
    *,
    variables: dict[str, Any],
    model: dict[str, Any],
    deltas: Sequence[Delta],
    task: Task,
    preprocess: Preprocess,
    plan: dict[str, Any],
    base: dict[str, Any],
    scores: Mapping[str, Any],
    contents: str,
    changed: set[str],
    formats: Mapping[str, str] | None = None,
    quantization: Mapping[str, Any] | None = None,
    made_of: Mapping[str, Any] | None = None,
    accepted: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes an artifact.

    Args:
      folder: created when absent.
      variables: all variables of the model with its deltas.
      model: arguments of `models.build` under ``name``, ``num_classes``, ``image_size``, ``dtype``,
        ``head``, and ``family``.
      deltas: deltas of the model.
      task: how the outputs are read.
      preprocess: deterministic preprocessing.
      plan: the plan's JSON.
      base: ``file`` and ``sha256`` of the pretrained weight file, and ``name_map`` where the config
        sets it.
      scores: scores by split.
      contents: ``all`` or ``delta``.
      changed: leaf paths, with their collection, that may differ from the base.
      formats: by path of a quantized leaf its format, such as ``int4(tile=32)``.
      quantization: comparison with the same model in float32, for a model that was quantized.
      made_of: what the run was made of, see `finetune_jax.identity`.
      accepted: differences of `made_of` that the user accepted during the run, and changes of its
        length.

    Raises:
      UserError: ``delta`` without a pretrained file, or a leaf with NaN, infinity or a negative
        variance; nothing is written then.
    """
    require_good_values(variables, "the artifact is not written")
    if contents == "delta" and not base.get("sha256"):
        raise UserError("artifact.contents=delta needs a pretrained file to be a delta of")
    folder.mkdir(parents=True, exist_ok=True)
    flat = {path: np.asarray(leaf) for path, leaf in tree.flatten(variables).items()}
    found = quantized_leaves(variables["params"])
    codes = {f"params/{path}/{name}" for path, name in found.items()}
    kept = flat if contents == "all" else {p: a for p, a in flat.items() if p in changed}
    save_native(folder / weights.FILE, tree.unflatten(kept), {"format": "finetune_jax"})
    card = {
        "version": schema.VERSION,
        "model": model,
        "deltas": [delta.to_json() for delta in deltas],
        "task": task.to_json(),
        "preprocess": preprocess.to_json(folder),
        "contents": contents,
        # A weight file is loaded in float32; these leaves of the base are kept in another dtype.
        "base_dtypes": {
            p: a.dtype.name
            for p, a in flat.items()
            if p not in kept and p not in codes and a.dtype != np.float32
        },
        "quantized": dict(formats or {}),
        **({"quantization": dict(quantization)} if quantization else {}),
        "base": base,
        "fingerprint": tree.fingerprint(variables),
        "scores": scores,
        "plan": plan,
        "made_of": dict(made_of or {}),
        "accepted": list(accepted),
    }
    # Checksums of the artifact's own leaves, which are then checked without the base.
    if contents == "delta":
        card["own_fingerprint"] = tree.fingerprint(tree.unflatten(kept))
    providers = providers_of(card)
    card |= {"providers": providers} if providers else {}
    # Checks that the written card can be read.
    schema.card_of(plain(card), str(folder / schema.FILE))
    write_json(folder / schema.FILE, seal(card))
