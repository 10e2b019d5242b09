"""Tokenizes texts by the tokenizer file of the model."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax.errors import UserError, nearest

_FILE = "tokenizer.json"
PAIRS = ("joined", "apart")


@dataclasses.dataclass(frozen=True)
class TextPreprocess:
    """Tokenizes one or two texts per example to a fixed number of tokens; cuts longer texts.

    Attributes:
      tokenizer: content of a ``tokenizer.json`` of the tokenizers library.
      size: number of tokens per input, special tokens included.
      columns: one or two columns of an example, which hold texts.
      pairs: ``joined``: two texts become one input of the model; ``apart``: two texts become two
        consecutive inputs.
    """

    tokenizer: str
    size: int
    columns: tuple[str, ...] = ("text",)
    pairs: str = "joined"

    kind: ClassVar[str] = "text"

    @classmethod
    def open(cls, path: Path, size: int, columns: tuple[str, ...], pairs: str) -> TextPreprocess:
        """Reads a tokenizer file; UserError for a missing or damaged file, or a wrong value."""
        if pairs not in PAIRS:
            raise UserError(f"unknown treatment of pairs {pairs!r}.{nearest(pairs, PAIRS)}")
        if len(columns) not in (1, 2):
            raise UserError(
                f"data.text_columns: expected one or two columns, found "
                f"{', '.join(columns) or 'none'}"
            )
        if not path.is_file():
            raise UserError(f"data.tokenizer: no file {path}; expected the model's {_FILE}")
        preprocess = cls(path.read_text(encoding="utf-8"), size, columns, pairs)
        preprocess._tokenizer  # noqa: B018  so that a damaged file is an error here
        return preprocess

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise UserError("texts need the tokenizers library: pip install tokenizers") from None
        try:
            tokenizer = Tokenizer.from_str(self.tokenizer)
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"data.tokenizer: not a tokenizer's JSON: {error}") from None
        padding = tokenizer.padding or _padding(tokenizer)
        kept = ("direction", "pad_id", "pad_token", "pad_type_id")
        least = tokenizer.num_special_tokens_to_add(is_pair=self._joined)
        if self.size <= least:
            raise UserError(
                f"data.max_tokens: {self.size} tokens have no room for a text beside the "
                f"tokenizer's own {least}"
            )
        tokenizer.enable_truncation(self.size)
        tokenizer.enable_padding(
            length=self.size, **{name: padding[name] for name in kept if name in padding}
        )
        return tokenizer

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        """``input_ids``, ``attention_mask``, ``token_type_ids``: i32[size], or [2, size] if apart.

        Raises:
          UserError: the example lacks one of the columns.
        """
        for column in self.columns:
            if column not in example:
                raise UserError(
                    f"data.text_columns: an example has no column {column!r}."
                    f"{nearest(column, example)}"
                )
        texts = [_text(example[column]) for column in self.columns]
        if self._views == 2:
            encodings = self._tokenizer.encode_batch(texts)
        else:
            encodings = [self._tokenizer.encode(*texts)]
        arrays = {
            "input_ids": np.array([e.ids for e in encodings], np.int32),
            "attention_mask": np.array([e.attention_mask for e in encodings], np.int32),
            "token_type_ids": np.array([e.type_ids for e in encodings], np.int32),
        }
        return arrays if self._views == 2 else {name: x[0] for name, x in arrays.items()}

    @property
    def _views(self) -> int:
        return 2 if self.pairs == "apart" and len(self.columns) == 2 else 1

    @property
    def _joined(self) -> bool:
        return self.pairs == "joined" and len(self.columns) == 2

    def device(self, batch: dict[str, Any]) -> dict[str, jax.Array]:
        """The same arrays, i32[b, size] or, of two texts apart, i32[b * 2, size]."""
        names = ("input_ids", "attention_mask", "token_type_ids")
        return {name: batch[name].reshape(-1, self.size) for name in names}

    def abstract(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the arrays of `host` in a batch of `count` examples."""
        shape = (count, self.size) if self._views == 1 else (count, 2, self.size)
        names = ("input_ids", "attention_mask", "token_type_ids")
        return {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in names}

    def read(self, text: str) -> dict[str, Any]:
        """One text, or two separated by a tab, by column; UserError for another number of texts."""
        parts = text.split("\t")
        if len(parts) != len(self.columns):
            raise UserError(
                f"expected {len(self.columns)} texts separated by tabs, found {len(parts)}: "
                f"{text!r}"
            )
        return dict(zip(self.columns, parts, strict=True))

    def to_json(self, folder: Path | None = None) -> dict[str, Any]:
        """Plain JSON values; the tokenizer is written to a file in `folder`, if it is given."""
        values = {
            "kind": self.kind, "size": self.size, "columns": list(self.columns),
            "pairs": self.pairs,
        }  # fmt: skip
        if folder is None:
            return {**values, "tokenizer": self.tokenizer}
        (folder / _FILE).write_text(self.tokenizer, encoding="utf-8")
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any], folder: Path | None = None) -> TextPreprocess:
        """The inverse of `to_json`."""
        options = {**values, "columns": tuple(values["columns"])}
        if "tokenizer" not in options:
            path = (folder or Path()) / _FILE
            if not path.is_file():
                raise UserError(f"{path}: missing")
            options["tokenizer"] = path.read_text(encoding="utf-8")
        return cls(**options)


def _padding(tokenizer: Any) -> dict[str, Any]:
    for token in ("[PAD]", "<pad>"):
        found = tokenizer.token_to_id(token)
        if found is not None:
            return {"pad_id": found, "pad_token": token}
    raise UserError("data.tokenizer: the tokenizer names no padding token")


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
