"""Formats in which a weight is stored in 8 or 4 bits: integers or small floats, and scales.

The arithmetic is qwix's (https://github.com/google/qwix). A weight w is stored as codes q with one
scale s for each column or for each tile of a column, so that w ≈ s * value(q). The scale maps the
largest |w| of its tile to the largest value of the format (*absmax*). The 16 values of ``nf4`` are
quantiles of a normal distribution (Dettmers et al. 2023, QLoRA, https://arxiv.org/abs/2305.14314).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from finetune_jax.errors import UserError, nearest
from finetune_jax.grammar import parse

_SMALLEST_TILE, _LARGEST_TILE = 8, 1024


@dataclasses.dataclass(frozen=True)
class Format:
    """How the values of a weight are stored.

    Attributes:
      name: name of the format, a key of `FORMATS`.
      qtype: qwix's name of the type of a code.
      bits: bits of a code. Two codes of 4 bits are one byte.
      tile: number of neighbouring inputs that share a scale; 0 for one scale for all inputs. An
        axis of another length than a multiple of `tile` has the largest smaller tile that divides
        the axis, at least half of `tile`, or else one scale.
      inputs: how the inputs of a layer with this weight are rounded to 8 bits: ``dynamic``, by
        scales of the inputs themselves, ``static``, by a scale that was measured on examples, or
        empty for inputs that are not rounded.
    """

    name: str
    qtype: Any
    bits: int
    tile: int = 0
    inputs: str = ""

    def __str__(self) -> str:
        return f"{self.name}(tile={self.tile})" if self.tile else self.name

    def encode(self, weight: jax.Array) -> dict[str, jax.Array]:
        """Codes and scales of a weight.

        Args:
          weight: f32[..., inputs, outputs]. For a table of embeddings, see `encode_rows`.

        Returns:
          ``{name of the codes: codes, "scale": f32}``. The codes have the shape of `weight`; codes
          of 4 bits are uint8[..., inputs, ceil(outputs / 2)]. The name is the format's, with
          ``_odd`` if the number of outputs is odd. The scales have the rank of `weight`.
        """
        return self._encode(weight, weight.ndim - 1, weight.ndim - 2)

    def encode_rows(self, table: jax.Array) -> dict[str, jax.Array]:
        """Codes and scales of a table of embeddings f32[rows, width]: scales for each row."""
        return self._encode(table, 0, 1)

    def _encode(self, weight: jax.Array, own: int, shared: int) -> dict[str, jax.Array]:
        """`encode` with own scales along one axis, and tiles along another."""
        import qwix

        tile = self._tile_of(weight.shape[shared])
        found = qwix.quantize(
            weight,
            self.qtype,
            channelwise_axes=[own],
            tiled_axes={shared: tile} if tile else {},
            scale_dtype=jnp.float32,
        )
        name, codes = self.name, found.qvalue
        if self.bits == 4:
            name, codes = f"{name}_odd" if codes.shape[-1] % 2 else name, _pack(codes)
        return {name: codes, "scale": found.scale}

    def decode(self, name: str, codes: jax.Array, scale: jax.Array) -> jax.Array:
        """The weight f32 that codes and scales stand for.

        Args:
          name: name of the codes, see `encode`.
          codes: the codes.
          scale: the scales.
        """
        import qwix

        if self.bits == 4:
            codes = _unpack(codes, odd=name.endswith("_odd"), signed=self.name == "int4")
        return qwix.dequantize(qwix.QArray(codes, scale, qtype=self.qtype))

    def _tile_of(self, length: int) -> int:
        """The tile of an axis, 0 for one scale."""
        tiles = range(min(self.tile, length), max(self.tile // 2, 1) - 1, -1) if self.tile else ()
        return next((tile for tile in tiles if length % tile == 0), 0)


def _pack(codes: jax.Array) -> jax.Array:
    """uint8[..., ceil(n / 2)] of codes of 4 bits [..., n]; the first code has the low bits."""
    codes = codes.astype(jnp.int8).astype(jnp.uint8) & 15
    if codes.shape[-1] % 2:
        codes = jnp.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    return codes[..., ::2] | (codes[..., 1::2] << 4)


def _unpack(packed: jax.Array, *, odd: bool, signed: bool) -> jax.Array:
    """The inverse of `_pack`: int4 if `signed`, else uint4."""
    both = jnp.stack([packed & 15, packed >> 4], axis=-1)
    codes = both.reshape(*packed.shape[:-1], -1)
    codes = codes[..., :-1] if odd else codes
    if signed:  # the bits of -8 to -1 are 8 to 15
        return jnp.where(codes > 7, codes.astype(jnp.int8) - 16, codes.astype(jnp.int8)).astype(
            jnp.int4
        )
    return codes.astype(jnp.uint4)


FORMATS = {
    "int8": Format("int8", jnp.int8, 8),
    "fp8": Format("fp8", jnp.float8_e4m3fn, 8),
    "int4": Format("int4", jnp.int4, 4, 64),
    "nf4": Format("nf4", "nf4", 4, 64),
    "w8a8": Format("w8a8", jnp.int8, 8, inputs="dynamic"),
    "w8a8_static": Format("w8a8_static", jnp.int8, 8, inputs="static"),
}
"""The formats by name, with their usual tiles."""


def parse_format(text: str, where: str) -> Format:
    """The format that a text such as ``int8`` or ``int4(tile=32)`` names.

    Args:
      text: name of the format, with the keyword ``tile`` if it is not the usual one.
      where: name of the key or flag, for messages.

    Raises:
      UserError: an unknown format, another keyword, or a tile that is no multiple of 8 from 8 to
        1024 (0 for one scale).
    """
    terms = parse(text)
    if len(terms) != 1 or terms[0].name not in FORMATS:
        raise UserError(
            f"{where}: expected one of {', '.join(FORMATS)}, such as int8 or int4(tile=32), found "
            f"{text!r}.{nearest(terms[0].name, FORMATS)}"
        )
    options = dict(terms[0].kwargs)
    tile = options.pop("tile", FORMATS[terms[0].name].tile)
    if terms[0].args or options:
        raise UserError(f"{where}: {text!r}: expected no argument but tile=, such as int4(tile=32)")
    right = isinstance(tile, int) and not isinstance(tile, bool) and tile % 8 == 0
    if not right or (tile and not _SMALLEST_TILE <= tile <= _LARGEST_TILE):
        raise UserError(
            f"{where}: tile: expected 0 (one scale), or a multiple of 8 from {_SMALLEST_TILE} to "
            f"{_LARGEST_TILE}, found {tile!r}"
        )
    return dataclasses.replace(FORMATS[terms[0].name], tile=tile)
