"""Tokenizes texts by the tokenizer file of the model."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax import schema
from finetune_jax.data.tokenizer_file import (
    LARGEST_FILE,
    LONGEST_TEXT,
    open_tokenizer,
    read_tokenizer,
    refused,
    remarks,
    with_side,
)
from finetune_jax.errors import UserError, nearest
from finetune_jax.progress import say_once

_FILE = "tokenizer.json"
PAIRS = ("joined", "apart")
# Files of slow tokenizers of transformers, from which the library makes the fast one.
_OTHER_FILES = (
    "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "spm.model",
    "tokenizer.model",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TextPreprocess:
    """Tokenizes one or two texts per example to a fixed number of tokens; cuts longer texts.

    A text is cut as the tokenizer's own file says: at its end or at its start (direction), and of
    two joined texts the longer one, only the first or only the second (strategy); without such
    settings, the longer text at its end. Only the first `LONGEST_TEXT` characters of a text are
    tokenized, or only the last characters if texts are cut at their start.

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

    def __post_init__(self) -> None:
        """Raises UserError for a wrong number of tokens, columns, or treatment of pairs."""
        schema.integer(1, schema.LARGEST_SIDE)(self.size, "data.max_tokens")
        schema.text(choices=PAIRS)(self.pairs, "pairs")
        if len(self.columns) not in (1, 2):
            raise UserError(
                f"data.text_columns: expected one or two columns, found "
                f"{', '.join(self.columns) or 'none'}"
            )

    @classmethod
    def open(cls, path: Path, size: int, columns: tuple[str, ...], pairs: str) -> TextPreprocess:
        """Reads a tokenizer file; UserError for a missing or damaged file, or a wrong value.

        A ``tokenizer_config.json`` beside the file may say that texts are cut at their start.
        """
        path = path / _FILE if path.is_dir() else path
        if not path.is_file():
            others = [n for n in _OTHER_FILES if path.with_name(n).is_file()]
            hint = "".join(
                f". {name} is beside it: transformers writes {_FILE} from it, by "
                f"AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
                for name in others[:1]
            )
            raise UserError(f"data.tokenizer: no file {path}; expected the model's {_FILE}{hint}")
        content = with_side(read_tokenizer(path), path.with_name("tokenizer_config.json"))
        preprocess = cls(content, size, columns, pairs)
        preprocess._tokenizer  # noqa: B018  so that a damaged file is an error here
        for remark in remarks(content, path.with_name("tokenizer_config.json")):
            say_once(f"{path}: {remark}")
        return preprocess

    @functools.cached_property
    def _tokenizer(self) -> Any:
        tokenizer = open_tokenizer(self.tokenizer)
        padding = tokenizer.padding or _padding(tokenizer)
        # Models here read the first token of a text at the first position: padding is on the right.
        kept = ("pad_id", "pad_token", "pad_type_id")
        least = tokenizer.num_special_tokens_to_add(is_pair=self._joined)
        if self.size <= least:
            raise UserError(
                f"data.max_tokens: {self.size} tokens have no room for a text beside the "
                f"tokenizer's own {least}"
            )
        own = tokenizer.truncation or {}
        tokenizer.enable_truncation(
            self.size,
            # The other strategies are about the two texts of one input.
            strategy=own.get("strategy", "longest_first") if self._joined else "longest_first",
            direction=own.get("direction", "right"),
        )
        tokenizer.enable_padding(
            length=self.size, **{name: padding[name] for name in kept if name in padding}
        )
        return tokenizer

    @property
    def fitted_tokenizer(self) -> str:
        """Content of a ``tokenizer.json`` that cuts and fills texts to `size` tokens as `host`."""
        return str(self._tokenizer.to_str())

    def host(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        """``input_ids``, ``attention_mask``, ``token_type_ids``: i32[size], or [2, size] if apart.

        Raises:
          UserError: the example lacks one of the columns, or holds a text that is not valid
            Unicode, or one of more than `LONGEST_TEXT` characters whose first characters are not
            enough tokens to fill the input.
        """
        for column in self.columns:
            if column not in example:
                raise UserError(
                    f"data.text_columns: an example has no column {column!r}."
                    f"{nearest(column, example)}"
                )
        texts = [self._text(example[column], column) for column in self.columns]
        encodings = self._encode(texts)
        arrays = {
            "input_ids": np.array([e.ids for e in encodings], np.int32),
            "attention_mask": np.array([e.attention_mask for e in encodings], np.int32),
            "token_type_ids": np.array([e.type_ids for e in encodings], np.int32),
        }
        return arrays if self._views == 2 else {name: x[0] for name, x in arrays.items()}

    def _encode(self, texts: list[str]) -> list[Any]:
        try:
            if self._views == 2:
                return self._tokenizer.encode_batch(texts)
            return [self._tokenizer.encode(*texts)]
        except BaseException as error:
            if "too short to respect" in str(error):
                strategy = self._tokenizer.truncation["strategy"]
                raise UserError(
                    f"data.max_tokens: two texts are longer than {self.size} tokens, and the "
                    f"truncation strategy of the tokenizer, {strategy!r}, cuts a text that is too "
                    f"short for it; expected shorter texts, more tokens, or 'LongestFirst' in the "
                    f"tokenizer's file"
                ) from None
            raise refused(error) from None

    def cuts(self, example: dict[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> bool:
        """Whether a text of an example does not fit and is cut.

        Args:
          example: the example.
          arrays: its arrays by `host`, if they are known: an input that is not full is not cut.
        """
        if arrays is not None and not arrays["attention_mask"].all(-1).any():
            return False
        texts = [_decoded(example[column], column) for column in self.columns]
        if any(len(text) > LONGEST_TEXT for text in texts):
            return True
        return any(encoding.overflowing for encoding in self._encode(texts))

    def _text(self, value: Any, column: str) -> str:
        """A text of an example, without characters beyond `LONGEST_TEXT` that are cut anyway."""
        text = _decoded(value, column)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{column}: the text {text!r:.80} is not valid Unicode at character {error.start}"
            ) from None
        if len(text) <= LONGEST_TEXT:
            return text
        at_start = self._tokenizer.truncation["direction"] == "left"
        part = text[-LONGEST_TEXT:] if at_start else text[:LONGEST_TEXT]
        if not self._fills(part):
            raise UserError(
                f"{column}: a text of {len(text)} characters; of the "
                f"{'last' if at_start else 'first'} {LONGEST_TEXT}, which alone are tokenized, "
                f"there are fewer tokens than the model's {self.size}"
            )
        return part

    def _fills(self, text: str) -> bool:
        """Whether a text alone has enough tokens for an input."""
        try:
            return all(self._tokenizer.encode(text).attention_mask)
        except BaseException as error:
            if "Second sequence not provided" in str(error):  # only the second may be cut
                return True
            raise refused(error) from None

    def require_rows(self, vocabulary: int, types: int) -> None:
        """Checks that the tokenizer gives numbers for which a model has embeddings.

        Args:
          vocabulary: number of tokens of the model.
          types: number of token types of the model.

        Raises:
          UserError: a token, or a type of tokens, whose number is too large; names it.
        """
        numbers = self._tokenizer.get_vocab(with_added_tokens=True)
        numbers = {token: n for token, n in numbers.items() if n >= vocabulary}
        padding = self._tokenizer.padding
        extra = [*_post_ids(self.tokenizer), (padding["pad_token"], padding["pad_id"])]
        for token, number in [*sorted(numbers.items(), key=lambda item: item[1]), *extra]:
            if not 0 <= number < vocabulary:
                raise UserError(
                    f"data.tokenizer: the token {token!r:.80} has the number {number}, and the "
                    f"model knows the numbers from 0 to {vocabulary - 1}: the tokenizer is that "
                    f"of another model"
                )
        (encoding,) = self._encode(["a"] * len(self.columns))[:1]
        if (largest := max(encoding.type_ids)) >= types:
            raise UserError(
                f"data.tokenizer: it gives tokens of type {largest}, and the model knows the "
                f"types from 0 to {types - 1}: take the tokenizer that belongs to the model, or "
                f"set each 'type_id' in the post_processor of the tokenizer's file to 0"
            )

    @property
    def special_tokens(self) -> int:
        """Number of the tokens, such as [CLS], that the tokenizer adds to an input."""
        return int(self._tokenizer.num_special_tokens_to_add(is_pair=self._joined))

    @property
    def unknown_token(self) -> tuple[str, int] | None:
        """The token for what the tokenizer does not know, and its number; None without one."""
        model = json.loads(self.tokenizer)["model"]
        token = model.get("unk_token")
        if token is None and isinstance(model.get("unk_id"), int):
            token = self._tokenizer.id_to_token(model["unk_id"])
        number = self._tokenizer.token_to_id(token) if isinstance(token, str) else None
        return None if number is None else (token, number)

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
        """One text, or two separated by a tab, by column; UserError for another number of texts.

        A single text may have tabs in it, as in training.
        """
        parts = text.split("\t") if len(self.columns) > 1 else [text]
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
        (folder / _FILE).write_text(self.tokenizer, encoding="utf-8", newline="")
        return {**values, "sha256": _sha256(self.tokenizer)}

    @classmethod
    def from_json(cls, values: dict[str, Any], folder: Path | None = None) -> TextPreprocess:
        """The inverse of `to_json`.

        Raises:
          UserError: a value of another type or out of its range, or a tokenizer that is missing,
            was changed, or does not work.
        """
        options = dict(values)
        wanted = options.pop("sha256", None)  # artifacts of older versions have none
        if "tokenizer" not in options:
            path = (folder or Path()) / _FILE
            options["tokenizer"] = read_tokenizer(path)
            if wanted is not None and wanted != _sha256(options["tokenizer"]):
                raise UserError(f"{path}: not the tokenizer of the artifact; it was changed")
        # The content of a file of several megabytes; its limit is not that of other texts.
        content = schema.text(LARGEST_FILE)(options.pop("tokenizer"), "preprocess.tokenizer")
        checked = schema.options_of(cls, {**options, "tokenizer": ""}, "preprocess")
        preprocess = cls(**{**checked, "tokenizer": content})
        preprocess._tokenizer  # noqa: B018  so that a damaged file is an error here
        return preprocess


def _decoded(value: Any, column: str) -> str:
    """A text, or a number as a text; UserError for a missing value, a list or an object."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if not np.isscalar(value) or value != value:
        raise UserError(
            f"{column}: expected a text, found {str(value)!r:.60} ({type(value).__name__}); fill "
            f"in the text or remove the example"
        )
    return str(value)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _post_ids(content: str) -> list[tuple[str, int]]:
    """The tokens, with their numbers, that a tokenizer puts before and after texts."""
    post = json.loads(content).get("post_processor") or {}
    found: list[tuple[str, int]] = []

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, member in value.items():
                walk(member, key)
        elif isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
            walk([value[1]], value[0])  # ["[CLS]", 101]
        elif isinstance(value, list):
            for member in value:
                if type(member) is int and name != "type_id":
                    found.append((name, member))
                else:
                    walk(member, name)

    walk(post, "")
    return found


def _padding(tokenizer: Any) -> dict[str, Any]:
    for token in ("[PAD]", "<pad>"):
        found = tokenizer.token_to_id(token)
        if found is not None:
            return {"pad_id": found, "pad_token": token}
    raise UserError("data.tokenizer: the tokenizer names no padding token")
