"""Rates: terms that select no leaves and scale the learning rates of the other terms' leaves, and
terms whose learning rates are measured on data."""

from __future__ import annotations

from collections.abc import Callable

from finetune_jax.errors import UserError
from finetune_jax.schemes.arguments import positive, positive_int
from finetune_jax.schemes.model_spec import NORM, Measurement, ModelSpec, Selection


def _by_layer(spec: ModelSpec, rate: Callable[[int, int], float]) -> Selection:
    """Rates by layer: ``rate(layer number, largest layer number)``."""
    if not spec.blocks:
        raise UserError("rates by layer need a model with blocks; this model has no blocks")
    numbers = spec.layer_numbers
    top = max(numbers.values())
    rates = {stage: rate(number, top) for stage, number in numbers.items()}
    return Selection(rates={p: rates[p.split("/", 1)[0]] for p in spec.paths})


def llrd(spec: ModelSpec, decay: float) -> Selection:
    """Layer-wise learning rate decay: decay^(top - layer), as in ELECTRA and BEiT (2106.08254).

    `ModelSpec.layer_numbers` numbers the layers. The factor is 1 for the head and the final norm,
    decay for the last block, …, and decay^(n + 1) for the stem of a model of n blocks.
    """
    positive("decay", decay)
    return _by_layer(spec, lambda layer, top: decay ** (top - layer))


def discriminative(spec: ModelSpec, factor: float = 2.6) -> Selection:
    """Each layer's rate is the next layer's rate / `factor`: ULMFiT (arXiv 1801.06146)."""
    positive("factor", factor)
    return _by_layer(spec, lambda layer, top: factor ** (layer - top))


def slice(spec: ModelSpec, start: float, stop: float | None = None) -> Selection:  # noqa: A001
    """fastai's ``slice`` as factors on the run's learning rate.

    ``slice(a, b)``: geometric from a at the first layer to b at the last. ``slice(b)``: b for the
    last layer, b/10 for all others.
    """
    if stop is None:
        positive("start", start)
        return _by_layer(spec, lambda layer, top: start if layer == top else start / 10)
    positive("start and stop", start, stop)
    ratio = stop / start
    return _by_layer(spec, lambda layer, top: start * ratio ** (layer / top))


def auto_rgn(spec: ModelSpec, batches: int = 5) -> Selection:
    """Rates by relative gradient norm, measured before every epoch (arXiv 2210.11466).

    The rate of a tensor is the mean of ‖g‖/‖w‖ over `batches` training batches, divided by the
    largest mean of all tensors. As in the released code, normalisation layers never train.
    """
    positive_int("batches", batches)
    leaves = [p for p in spec.paths if not NORM.fullmatch(p)]
    return Selection(leaves, measured=Measurement("rgn", (("batches", batches),)))


def auto_snr(spec: ModelSpec, batches: int = 5, threshold: float = 0.95) -> Selection:
    """Tensors whose gradient has a high signal-to-noise ratio train (arXiv 2210.11466).

    The ratio of a tensor is |mean g|² over the sum of the variances of the tensor's scalars, both
    over `batches` batches (at least 2, because the variance needs 2), divided by the largest ratio
    of all tensors. Tensors below `threshold` get the rate 0.
    """
    positive_int("batches", batches, least=2)
    positive("threshold", threshold)
    leaves = [p for p in spec.paths if not NORM.fullmatch(p)]
    settings = (("batches", batches), ("threshold", float(threshold)))
    return Selection(leaves, measured=Measurement("snr", settings))


TERMS = (llrd, discriminative, slice, auto_rgn, auto_snr)
