"""An open weight file: names, shapes and dtypes at once, values one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from finetune_jax.errors import UserError, nearest

Spec = tuple[tuple[int, ...], np.dtype]


class Weights:
    """What every file format is read into; see `finetune_jax.pretrained.formats.open_weights`.

    Example:
      with open_weights("resnet20.th") as weights:
          kernel = weights.read("module.conv1.weight")  # f32[16, 3, 3, 3]

    Attributes:
      path: the file.
      beside: names of entries beside the tensors that are not read (an epoch, an optimizer).
    """

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, Spec],
        read: Callable[[str], np.ndarray],
        close: Callable[[], None],
        beside: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self.beside = beside
        self._specs = dict(specs)
        self._read = read
        self._close = close

    def names(self) -> tuple[str, ...]:
        """The tensors' names, in the file's order."""
        return tuple(self._specs)

    def spec(self, name: str) -> Spec:
        """(shape, dtype) of one tensor, without reading its values; UserError if there is none."""
        if name not in self._specs:
            raise UserError(f"{self.path} has no tensor {name!r}.{nearest(name, self._specs)}")
        return self._specs[name]

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor, of the shape and dtype that `spec` gives.

        Raises UserError if there is no such tensor or the file is damaged where it lies.
        """
        shape, dtype = self.spec(name)
        array = self._read(name)
        if array.shape != shape or array.dtype != dtype:
            raise UserError(
                f"{self.path}: tensor {name!r} is announced as {dtype}{list(shape)} and holds "
                f"{array.dtype}{list(array.shape)}"
            )
        return array

    def close(self) -> None:
        """Lets go of the file; no tensor can be read afterwards."""
        self._close()

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
