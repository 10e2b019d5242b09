"""What the registry knows of a model: how to build it, and the constants that travel with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from finetune_jax.models.staged import StagedModel

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """How the published weights want their images.

    Attributes:
      size: side of the square, in pixels; of texts, the most tokens they are used with.
      mean, std: per channel, of RGB values in [0, 1].
      interpolation: ``nearest``, ``bilinear`` or ``bicubic``.
      crop: side of the central square that is kept, as a share of the resized short side; 0 resizes
        both sides to `size` instead, whatever the picture's proportions.
      channels: order of the colours, ``rgb`` or ``bgr``; mean and std are in this order.
    """

    size: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    crop: float = 0.875
    channels: str = "rgb"


# keras.applications' "caffe" mode: the means of its training pictures are taken off in BGR order,
# and 0 to 255 is not scaled. Keras' own loader of image files squeezes them, by the nearest pixel.
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
      family: which name maps fit.
      build: the staged module, from the keywords of `finetune_jax.models.build`.
      inputs: of the published weights.
      classes: outputs of the published head; 0 if they come without one.
      labels: what the outputs are, in order.
      weights: sources of published weights, as `finetune_jax.pretrained.sources` reads them.
      licence: of those weights, as their publishers state it.
      patch: the input size must be a multiple of it.
      dropout: whether the model has any.
      heads: choices of ``model.head``, the default first; none for a family with one head. The
        choice goes to `build` as ``head_kind``.
      tokens: the input is text: token numbers instead of an image.
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

    @property
    def image_size(self) -> int:
        """Default side of the input in pixels; length of a text in tokens."""
        return self.inputs.size
