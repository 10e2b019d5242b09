"""Sources of weights: a path, a Hugging Face repository, an address, Keras, this package.

Examples:

runs/base/model.safetensors
hf:google/vit-base-patch16-224@main
hf:google/vit-base-patch16-224/model.safetensors
https://host/name.npz#sha256=…      gs://bucket/name.npz#sha256=…
keras:vgg16_notop
package:resnet20_cifar10

The revision of a repository may be a branch, a tag or a commit; a commit never changes. Any source
of one file may end in ``#sha256=`` and its SHA-256, which is then compared.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from finetune_jax.errors import UserError, nearest
from finetune_jax.pretrained.sources.download import download, place_of
from finetune_jax.pretrained.sources.hub import cached_file, fetch_companions, resolve_hub
from finetune_jax.pretrained.sources.pins import require_digest, unpinned

_KERNELS = "_weights_tf_dim_ordering_tf_kernels"
_SAME_PATTERN = (
    *("vgg16", "vgg19", "inception_v3", "xception", "densenet121", "densenet169", "densenet201"),
    *("resnet50", "resnet101", "resnet152", "resnet50v2", "resnet101v2", "resnet152v2"),
)
# File names in Keras' cache: (with the classifier, without the classifier).
_KERAS_FILES: dict[str, tuple[str, str]] = {
    **{name: (f"{name}{_KERNELS}.h5", f"{name}{_KERNELS}_notop.h5") for name in _SAME_PATTERN},
    "mobilenet": ("mobilenet_1_0_224_tf.h5", "mobilenet_1_0_224_tf_no_top.h5"),
    "mobilenet_v2": (
        f"mobilenet_v2{_KERNELS}_1.0_224.h5",
        f"mobilenet_v2{_KERNELS}_1.0_224_no_top.h5",
    ),
}
_NO_TOP = "_notop"
_SHIPPED = Path(__file__).parents[2] / "weights"


def resolve(source: str) -> Path:
    """The file or folder of a source, downloaded into a cache if necessary.

    Args:
      source: a path; ``package:name`` of weights that ship with this package;
        ``hf:owner/name[@revision][/file]``; ``http(s)://…#sha256=HEX`` or ``gs://…#sha256=HEX``;
        ``keras:name`` or ``keras:name_notop``, which must be in Keras' cache and is never
        downloaded. Each may end in ``#sha256=HEX``.

    Returns:
      A path for `open_weights`. The existence of a plain path is not checked.

    Raises:
      UserError: the source is malformed or not available, or its checksum differs. The message says
        what to do.
    """
    if "://" not in source:
        bare, wanted = unpinned(source)
        if wanted:
            path = resolve(bare)
            require_digest(source, path, wanted)
            return path
    scheme, colon, rest = source.partition(":")
    if not source.strip():
        raise UserError("expected a source of weights, found an empty string")
    if colon and scheme == "hf":
        return resolve_hub(rest)
    if colon and scheme == "keras":
        return _keras(rest)
    if colon and scheme == "package":
        return _shipped(rest)
    if "://" in source:
        if scheme not in ("http", "https", "gs"):
            raise UserError(
                f"{source}: unknown kind of address {scheme!r}; expected a path, package:, hf:, "
                f"keras:, http://, https:// or gs://.{nearest(scheme, ('http', 'https', 'gs'))}"
            )
        return download(source)
    return Path(source).expanduser()


def local_file(source: str) -> Path | None:
    """As `resolve`, without any download: None for a file that is not in the cache yet.

    Raises:
      UserError: as `resolve`, where a download does not help.
    """
    scheme, colon, rest = unpinned(source)[0].partition(":")
    if colon and scheme == "hf":
        return cached_file(rest)
    if scheme in ("http", "https", "gs") and "://" in source:
        path = place_of(source).path
        return path if path.is_file() else None
    return resolve(source)


def companion_folder(source: str, names: Sequence[str], *, fetch: bool) -> Path | None:
    """The folder of the files that describe a weight file, such as ``config.json``.

    Args:
      source: see `resolve`.
      names: files that are wanted, as paths in the folder; each may be missing.
      fetch: whether files of a Hugging Face repository that are not in the cache are downloaded.

    Returns:
      The folder of the weight file of a path or a repository; None for other sources, and without
      `fetch` for a repository that is not in the cache.
    """
    if "://" not in source:
        source = unpinned(source)[0]
    scheme, colon, rest = source.partition(":")
    if colon and scheme == "hf":
        return fetch_companions(rest, names, fetch=fetch)
    if "://" in source or (colon and scheme in ("keras", "package")):
        return None
    path = Path(source).expanduser()
    return path if path.is_dir() else path.parent


def _shipped(name: str) -> Path:
    files = {path.stem: path for path in sorted(_SHIPPED.glob("*.safetensors"))}
    if name not in files:
        raise UserError(f"package:{name}: no such weights.{nearest(name, files)}")
    return files[name]


def _keras(name: str) -> Path:
    base = name.removesuffix(_NO_TOP)
    if base not in _KERAS_FILES:
        valid = [f"{known}{end}" for known in _KERAS_FILES for end in ("", _NO_TOP)]
        raise UserError(f"keras:{name}: no such weights.{nearest(name, valid)}")
    home = os.environ.get("KERAS_HOME")
    folder = (Path(home) if home else Path.home() / ".keras") / "models"
    path = folder / _KERAS_FILES[base][name.endswith(_NO_TOP)]
    if not path.is_file():
        raise UserError(
            f"keras:{name}: {path} is missing. Copy the file there, or let Keras download it "
            f"where there is a network (keras.applications with weights='imagenet'); $KERAS_HOME "
            f"sets another folder than ~/.keras"
        )
    return path
