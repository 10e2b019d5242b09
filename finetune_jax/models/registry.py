"""Entries of the model registry: how a model is built, and the constants of its published weights.

A config names a model by a key of `finetune_jax.models.MODELS`, or by the import path of an object
in another package, ``model.name="my_package.models:NAME"``. The object is one of:

- an `Entry`. Its `build` takes the keywords ``num_classes``, ``dtype``, ``remat`` and ``dropout``,
  and ``head_kind`` if the entry has several `heads`; `build` returns a `StagedModel`;
- a subclass of `StagedModel` whose fields have defaults, but for ``num_classes``. The fields
  ``dtype``, ``remat`` and ``dropout`` are optional; a config that sets ``model.dtype``,
  ``model.remat`` or ``model.dropout`` needs the field of that name. The class gets the entry
  of `entry_of_class`: images of 224 pixels, no published weights.

Example:
  class Small(StagedModel):
      num_classes: int
      dtype: Any = jnp.float32

      @property
      def stages(self) -> tuple[str, ...]:
          return ("stem", "head")

      def setup(self) -> None:
          self.stem = Stem(dtype=self.dtype)  # called with (x, batch_statistics, dropout)
          self.head = nn.Dense(self.num_classes)

  SMALL = Entry("small", Small, inputs=Inputs(32), classes=0, labels="")

Our own weight files fit every model. Files of other projects need a name map:
``pretrained.name_map="my_package.maps:NAME"``, see `finetune_jax.pretrained.maps`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from finetune_jax.errors import UserError
from finetune_jax.models.staged import StagedModel

FAMILY_MODULES = (
    "bit", "convnext", "mixer", "mobilenet_v1", "mobilenet_v2", "resnet", "resnet8_mlperf",
    "resnet_cifar", "squeezenet", "text_encoder", "vgg", "vit",
)  # fmt: skip
"""Modules of this package with models. Each defines ``ENTRIES``, a dict of entries by model name.

`finetune_jax.pretrained.maps` has a module of the same name with the name maps.
"""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The input that the published weights of a model expect.

    Attributes:
      size: side of the square image in pixels; for texts, the largest number of tokens that the
        weights are used with.
      mean, std: mean and standard deviation per channel, of values in [0, 1].
      interpolation: ``nearest``, ``bilinear``, ``bicubic``, ``lanczos``, ``box`` or ``hamming``.
      crop: side of the central square that is kept, as a fraction of the resized short side. With
        0, both sides are resized to `size` instead, whatever the proportions of the image.
      channels: order of the colours, ``rgb`` or ``bgr``; `mean` and `std` are in this order.
    """

    size: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    crop: float = 0.875
    channels: str = "rgb"


# The "caffe" mode of keras.applications: the means of the training images are subtracted in BGR
# order from values in [0, 255], which are not scaled. The image loader of Keras resizes both sides
# by the nearest pixel.
CAFFE = Inputs(
    224,
    mean=(103.939 / 255, 116.779 / 255, 123.68 / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
    interpolation="nearest",
    crop=0,
    channels="bgr",
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model of the registry.

    Attributes:
      family: model family, which decides the name maps that are tried on a weight file.
      build: function that returns the staged module; its keywords are described at the top of this
        file.
      inputs: input that the published weights expect.
      classes: number of outputs of the published head; 0 if the weights have no head.
      labels: meaning of the outputs, in their order.
      weights: sources of published weights, in the forms that `finetune_jax.pretrained.sources`
        reads.
      licence: licence of the published weights, as their publishers state it.
      patch: number of pixels; the input size must be a multiple of it.
      dropout: whether the model has dropout.
      heads: valid values of ``model.head``, the default first; empty for a family with one head.
        The chosen value goes to `build` as ``head_kind``.
      tokens: whether the input is a text as token numbers, and no image.
      options: fields of the model that ``model.name="NAME(option=value)"`` may set, see
        `finetune_jax.models.options`; empty for a model without options.
      required: options without which there is no model, because the entry has no sizes.
      fitted: function of the entry and a model with the given options, which returns the entry of
        that model; None if options change no attribute of the entry.
    """

    family: str
    build: Callable[..., StagedModel]
    inputs: Inputs = Inputs()
    classes: int = 1000
    labels: str = "ImageNet-1k, in order of WordNet ID"
    weights: tuple[str, ...] = ()
    licence: str = ""
    patch: int = 1
    dropout: bool = False
    heads: tuple[str, ...] = ()
    tokens: bool = False
    options: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    fitted: Callable[[Entry, Any], Entry] | None = None

    @property
    def image_size(self) -> int:
        """Default side of the input image in pixels; for texts, the number of tokens."""
        return self.inputs.size


def entry_of_class(name: str, model: type[StagedModel]) -> Entry:
    """The entry of a model class of another package, which has no entry of its own.

    Args:
      name: import path of the class, ``package.module:NAME``; also the name of its family.
      model: the class; see the top of this file for its fields.

    Raises:
      UserError: the class has no field ``num_classes``, or another field without a default.
    """
    fields = {f.name: f for f in dataclasses.fields(model)}
    required = {
        field.name
        for field in fields.values()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if "num_classes" not in fields or required - {"num_classes"}:
        without = ", ".join(sorted(required - {"num_classes"})) or "none"
        raise UserError(
            f"model.name: {name!r}: expected a class with the field 'num_classes' and defaults for "
            f"all other fields, found the fields {', '.join(fields)}; without a default: {without}"
        )

    def build(
        *, num_classes: int, dtype: Any = jnp.float32, remat: bool = False, dropout: float = 0.0
    ) -> StagedModel:
        options = {"dtype": dtype, "remat": remat, "dropout": dropout}
        for option, default in (("dtype", jnp.float32), ("remat", False), ("dropout", 0.0)):
            if option not in fields and options.pop(option) != default:
                raise UserError(
                    f"model.{option}: {name!r} has no field {option!r}; expected the default"
                )
        return model(num_classes=num_classes, **options)  # type: ignore[call-arg]  # checked above

    return Entry(name, build, classes=0, labels="", dropout="dropout" in fields)
