"""Rates: terms that claim nothing and scale the learning rate of what others claim, and terms whose
rates are measured on data."""

from __future__ import annotations

from collections.abc import Callable

from finetune_jax.schemes.arguments import positive, whole
from finetune_jax.schemes.outline import NORM, Claim, Outline


def _by_layer(outline: Outline, rate: Callable[[int, int], float]) -> Claim:
    layers = outline.layers
    top = max(layers.values())
    rates = {s: rate(number, top) for s, number in layers.items()}
    return Claim(rates={p: rates[p.split("/", 1)[0]] for p in outline.paths})


def llrd(outline: Outline, decay: float) -> Claim:
    """Layer-wise learning rate decay: decay^(top - layer), as in ELECTRA and BEiT (2106.08254).

    `Outline.layers` numbers the layers: head and final norm 1, the last block decay, …, the stem
    decay^(n + 1).
    """
    positive("llrd", decay)
    return _by_layer(outline, lambda layer, top: decay ** (top - layer))


def discriminative(outline: Outline, factor: float = 2.6) -> Claim:
    """Each layer learns `factor` times slower than the next: ULMFiT (arXiv 1801.06146)."""
    positive("discriminative", factor)
    return _by_layer(outline, lambda layer, top: factor ** (layer - top))


def slice(outline: Outline, start: float, stop: float | None = None) -> Claim:  # noqa: A001
    """fastai's ``slice`` as factors on the run's learning rate.

    ``slice(a, b)``: geometric from a at the first layer to b at the last. ``slice(b)``: b for the
    last layer, b/10 for all others.
    """
    if stop is None:
        positive("slice", start)
        return _by_layer(outline, lambda layer, top: start if layer == top else start / 10)
    positive("slice", start, stop)
    return _by_layer(outline, lambda layer, top: start * (stop / start) ** (layer / top))


def auto_rgn(outline: Outline, batches: int = 5) -> Claim:
    """Rates by relative gradient norm, measured before every epoch (arXiv 2210.11466).

    Per tensor, the mean of ‖g‖/‖w‖ over `batches` training batches, divided by the largest. As in
    the released code, normalisation layers never train.
    """
    whole("batches", batches)
    leaves = [p for p in outline.paths if not NORM.fullmatch(p)]
    return Claim(leaves, measured=("rgn", (("batches", batches),)))


def auto_snr(outline: Outline, batches: int = 5, threshold: float = 0.95) -> Claim:
    """Tensors whose gradient's signal-to-noise ratio is high train (arXiv 2210.11466).

    Per tensor, |mean g|² over the sum of the variances of its scalars over `batches` batches,
    divided by the largest; below `threshold` the rate is 0.
    """
    # The variance over one batch is nothing.
    whole("batches", batches, least=2)
    positive("threshold", threshold)
    leaves = [p for p in outline.paths if not NORM.fullmatch(p)]
    settings = (("batches", batches), ("threshold", float(threshold)))
    return Claim(leaves, measured=("snr", settings))


TERMS = (llrd, discriminative, slice, auto_rgn, auto_snr)
