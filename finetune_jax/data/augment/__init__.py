"""Random augmentations on device, inside the jitted step: ``"random_crop(pad=4) + flip"``.

Augmentations read pixels, RGB in [0, 1], before normalisation. The random choices of every image
are independent and come from the PRNG key of the step alone, so they do not depend on the number of
devices, and the program does not depend on the choices.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from finetune_jax.data.augment import colour, geometry, mix, rand_augment
from finetune_jax.data.preprocess import ImagePreprocess, Preprocess
from finetune_jax.errors import UserError, nearest
from finetune_jax.grammar import Call, parse

Batch = dict[str, Any]
Augment = Callable[[jax.Array, Any, Batch], tuple[Any, Batch]]
"""A function of (PRNG key, prepared inputs, batch) to (model inputs, batch), both augmented."""


def no_augment(key: jax.Array, prepared: Any, batch: Batch) -> tuple[Any, Batch]:
    """The `Augment` that changes nothing."""
    del key
    return prepared, batch


@dataclasses.dataclass(frozen=True)
class InputPipeline:
    """From a batch on device to the model's inputs: preprocessing and random augmentation.

    Attributes:
      prepare: deterministic function of the batch to what `augment` reads: pixels
        f32[b, h, w, 3], RGB in [0, 1], or, without augmentation, the model's inputs.
      augment: function of (PRNG key, result of `prepare`, batch) to (the model's inputs, the batch
        with its targets changed likewise).
    """

    prepare: Callable[[Batch], Any]
    augment: Augment = no_augment

    def __call__(self, key: jax.Array, batch: Batch) -> tuple[Any, Batch]:
        """The model's inputs, and the batch with its targets."""
        return self.augment(key, self.prepare(batch), batch)


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "flip": geometry.flip,
    "random_crop": geometry.random_crop,
    "random_resized_crop": geometry.random_resized_crop,
    "random_erasing": geometry.random_erasing,
    "colour_jitter": colour.colour_jitter,
    "grayscale": colour.grayscale,
    "rand_augment": rand_augment.rand_augment,
}
MIXES: dict[str, Callable[..., Any]] = {"mixup": mix.mixup, "cutmix": mix.cutmix}
_COLOURS = ("colour_jitter", "grayscale")  # transforms that move no pixel


def canonical(augment: str | Sequence[str]) -> str:
    """``config.data.augment``, a text or several texts, as one text; empty for no augmentation."""
    texts = [augment] if isinstance(augment, str) else list(augment)
    return " + ".join(text.strip() for text in texts if text.strip())


def mixes(augment: str | Sequence[str]) -> bool:
    """Whether an augmentation mixes images of a batch, and thereby changes targets."""
    return any(term.name in MIXES for term in _terms(augment))


def parse_augment(augment: str | Sequence[str], fill: Any = 0.0) -> Augment:
    """Returns a function of (key, pixels, batch) that applies the terms from left to right.

    Terms that mix images (`MIXES`) come last; of several such terms, one is drawn in each step. A
    mixing term adds ``label2`` and ``mix`` to the batch (`finetune_jax.data.augment.mix`).

    Args:
      augment: terms joined by ``+``, or several such texts; empty for no augmentation.
      fill: f32[channels], or a number: the colour outside of an image.

    Raises:
      UserError: an unknown term or argument, a value out of range, or a mixing term before another
        term.
    """
    terms = _terms(augment)
    functions = [_make(term) for term in terms]
    is_mix = [term.name in MIXES for term in terms]
    if is_mix != sorted(is_mix):
        raise UserError(
            f"data.augment: expected the terms that mix images at the end, found "
            f"{' + '.join(map(str, terms))}"
        )
    count = is_mix.count(False)
    transforms, mixing = functions[:count], functions[count:]

    def apply(key: jax.Array, pixels: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        for index, transform in enumerate(transforms):
            pixels = transform(jax.random.fold_in(key, index), pixels, jnp.asarray(fill))
        if mixing:
            first, second = jax.random.split(jax.random.fold_in(key, len(transforms)))
            which = jax.random.randint(first, (), 0, len(mixing))
            pixels, shares = jax.lax.switch(which, mixing, second, pixels)
            batch = {**batch, "label2": jnp.roll(batch["label"], 1, axis=0), "mix": shares}
        return pixels, batch

    return apply


def make_input_pipeline(preprocess: Preprocess, augment: str | Sequence[str] = "") -> InputPipeline:
    """Returns the device half of a preprocessing, with augmentation before the normalisation.

    Args:
      preprocess: preprocessing of the inputs.
      augment: see `parse_augment`.

    Raises:
      UserError: the errors of `parse_augment`, or an augmentation of inputs that are not images.
    """
    if not canonical(augment):
        return InputPipeline(preprocess.device)
    if not isinstance(preprocess, ImagePreprocess):
        raise UserError(
            f"data.augment: {canonical(augment)!r} is for images, and the model reads "
            f"{preprocess.kind}; expected ''"
        )
    change = parse_augment(augment, preprocess.fill)

    def apply(key: jax.Array, pixels: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        pixels, batch = change(key, pixels, batch)
        return preprocess.normalise(pixels), batch

    return InputPipeline(preprocess.pixels, apply)


def check_targets(augment: str | Sequence[str], targets: Mapping[str, Any]) -> None:
    """Raises UserError for an augmentation after which targets would not fit the images.

    Args:
      augment: see `parse_augment`.
      targets: shapes and dtypes of the targets of a batch, from `Task.abstract`.
    """
    terms = _terms(augment)
    if "class_map" in targets:
        moving = [term.name for term in terms if term.name not in _COLOURS]
        if moving:
            raise UserError(
                f"data.augment: {moving[0]} moves the pixels of images, but not of masks; for this "
                f"task expected only {', '.join(_COLOURS)}"
            )
    label = targets.get("label")
    if mixes(augment) and not (
        label is not None and len(label.shape) == 1 and jnp.issubdtype(label.dtype, jnp.integer)
    ):
        raise UserError(
            "data.augment: mixup and cutmix need one class per image, which this task does not have"
        )


def _terms(augment: str | Sequence[str]) -> Sequence[Call]:
    text = canonical(augment)
    return parse(text) if text else ()


def _make(term: Call) -> Any:
    known = {**TRANSFORMS, **MIXES}
    if term.name not in known:
        raise UserError(
            f"data.augment: unknown augmentation {term.name!r}.{nearest(term.name, known)}"
        )
    try:
        bound = inspect.signature(known[term.name]).bind(*term.args, **dict(term.kwargs))
    except TypeError as error:
        raise UserError(f"data.augment: {term}: {error}") from None
    try:
        return known[term.name](*bound.args, **bound.kwargs)
    except UserError as error:
        raise UserError(f"data.augment: {error}") from None
