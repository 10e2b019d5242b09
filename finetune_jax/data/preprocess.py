"""Deterministic preprocessing, which an artifact stores so that prediction equals training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax import schema
from finetune_jax.data.images import INTERPOLATIONS, MAX_PIXELS, decode, resize
from finetune_jax.data.text import TextPreprocess
from finetune_jax.errors import UserError
from finetune_jax.models import Inputs, StagedModel

Batch = dict[str, Any]


class Preprocess(Protocol):
    """From an example of a source to the input of the model.

    An immutable value: equal objects preprocess in the same way, and objects are keys of the caches
    of compiled programs.
    """

    @property
    def kind(self) -> str:
        """Name of the kind in an artifact: ``image``, ``image pair`` or ``text``."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of an example that `host` reads."""

    @property
    def size(self) -> int:
        """Size of the model's input: side in pixels, or number of tokens."""

    def __hash__(self) -> int: ...

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        """The inputs of an example as arrays of fixed shape, by their names in a batch."""

    def device(self, batch: Batch) -> Any:
        """The input of the model, computed on device from a batch of results of `host`."""

    def abstract(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the arrays of `host` in a batch of `count` examples."""

    def read(self, text: str) -> dict[str, Any]:
        """The example that an argument of a command names: an image file, or the text itself."""

    def to_json(self, folder: Path | None = None) -> dict[str, Any]:
        """Plain JSON values; large values go to files in `folder`, if it is given."""


@dataclasses.dataclass(frozen=True)
class ImagePreprocess(Inputs):
    """Resizes, crops and orders channels on the host in uint8; normalises on device in f32.

    The first attributes are those of `finetune_jax.models.Inputs`, the constants of a model's
    published weights.

    Attributes:
      max_pixels: pixels of the largest image that `read` decodes, ``data.max_pixels``.
    """

    max_pixels: int = MAX_PIXELS

    kind: ClassVar[str] = "image"
    columns: ClassVar[tuple[str, ...]] = ("image",)

    def __post_init__(self) -> None:
        """Raises UserError for a value out of its range; the message names its key in a config."""
        schema.integer(1, schema.LARGEST_SIDE)(self.size, "data.image_size")
        schema.integer(1, 2**40)(self.max_pixels, "data.max_pixels")
        schema.list_of(schema.number(-1000, 1000), 3, 3)(self.mean, "data.mean")
        schema.list_of(schema.number(1e-6, 1000), 3, 3)(self.std, "data.std")
        schema.text(choices=INTERPOLATIONS)(self.interpolation, "data.interpolation")
        schema.number(0, 1)(self.crop, "data.crop")
        if self.crop and self.size / self.crop > 4 * schema.LARGEST_SIDE:
            raise UserError(
                f"data.crop: images would have {self.size / self.crop:.0f} pixels a side before "
                f"their crop to {self.size}; expected a larger share than {self.crop:g}"
            )
        schema.text(choices=("rgb", "bgr"))(self.channels, "channels")

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        """``image`` uint8[size, size, 3] in the model's order of channels, from any size in RGB."""
        square = resize(example["image"], self.size, self.interpolation, self.crop)
        return {"image": square[..., ::-1] if self.channels == "bgr" else square}

    def device(self, batch: Batch) -> jax.Array:
        """``image`` uint8[b, size, size, 3] to f32 of the same shape: (x / 255 - mean) / std."""
        return self.normalise(self.pixels(batch))

    def pixels(self, batch: Batch) -> jax.Array:
        """The first half of `device`: f32[b, size, size, 3], RGB in [0, 1], not normalised."""
        return self._ordered(batch["image"].astype(jnp.float32) / 255)

    def normalise(self, pixels: jax.Array) -> jax.Array:
        """The second half of `device`: (pixels - mean) / std, in the model's order of channels."""
        mean, std = jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32)
        return (self._ordered(pixels) - mean) / std

    @property
    def fill(self) -> jax.Array:
        """RGB f32[3] that normalises to 0: the colour that augmentations put outside of images."""
        return self._ordered(jnp.asarray(self.mean, jnp.float32))

    def _ordered(self, x: jax.Array) -> jax.Array:
        """From RGB to the model's order of channels, or from that order to RGB."""
        return x[..., ::-1] if self.channels == "bgr" else x

    def abstract(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {"image": jax.ShapeDtypeStruct((count, self.size, self.size, 3), jnp.uint8)}

    def read(self, text: str) -> dict[str, Any]:
        return {"image": decode(text, max_pixels=self.max_pixels)}

    def to_json(self, folder: Path | None = None) -> dict[str, Any]:
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        return {"kind": self.kind, **values}

    @classmethod
    def from_json(cls, values: dict[str, Any], folder: Path | None = None) -> ImagePreprocess:
        """The inverse of `to_json`; UserError for a value of another type or out of its range."""
        return cls(**schema.options_of(cls, values, "preprocess"))


@dataclasses.dataclass(frozen=True)
class ImagePairPreprocess(ImagePreprocess):
    """Two images per example, each preprocessed separately: two consecutive inputs of the model."""

    kind: ClassVar[str] = "image pair"
    columns: ClassVar[tuple[str, ...]] = ("image", "image2")

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        """``image`` uint8[2, size, size, 3]."""
        single = super().host
        pair = [single({"image": example[column]})["image"] for column in self.columns]
        return {"image": np.stack(pair)}

    def pixels(self, batch: Batch) -> jax.Array:
        """f32[b * 2, size, size, 3] in [0, 1] from ``image`` uint8[b, 2, size, size, 3]."""
        return super().pixels({"image": batch["image"].reshape(-1, *batch["image"].shape[2:])})

    def abstract(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {"image": jax.ShapeDtypeStruct((count, 2, self.size, self.size, 3), jnp.uint8)}

    def read(self, text: str) -> dict[str, Any]:
        """Decodes two image files, separated by a tab; UserError for another number of files."""
        files = text.split("\t")
        if len(files) != 2:
            raise UserError(
                f"expected 2 image files separated by a tab, found {len(files)}: {text!r}"
            )
        images = [decode(file, max_pixels=self.max_pixels) for file in files]
        return dict(zip(self.columns, images, strict=True))


def require_vocabulary(preprocess: Preprocess, model: StagedModel) -> None:
    """Raises UserError if the embeddings of a model lack a number or a place of a tokenizer."""
    vocabulary, types = getattr(model, "vocabulary", 0), getattr(model, "types", 0)
    most = getattr(model, "most_tokens", preprocess.size)
    if isinstance(preprocess, TextPreprocess) and preprocess.size > most:
        raise UserError(
            f"data.max_tokens: {preprocess.size} tokens, and the model has positions for {most}; "
            f"expected at most {most}"
        )
    if isinstance(preprocess, TextPreprocess) and vocabulary and types:
        preprocess.require_rows(vocabulary, types)


KINDS: dict[str, type[ImagePreprocess] | type[TextPreprocess]] = {
    kind.kind: kind for kind in (ImagePreprocess, ImagePairPreprocess, TextPreprocess)
}
"""Classes of preprocessing, by `Preprocess.kind`."""


def from_json(values: dict[str, Any], folder: Path | None = None) -> Preprocess:
    """The inverse of `Preprocess.to_json`; UserError for an unknown kind."""
    options = dict(schema.an_object(values, "preprocess"))
    kind = schema.text(choices=KINDS)(options.pop("kind", None), "preprocess.kind")
    return KINDS[kind].from_json(options, folder)
