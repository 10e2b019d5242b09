"""Files of Hugging Face repositories, in the cache of huggingface_hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finetune_jax.errors import UserError, lacks, nearest, require_library
from finetune_jax.pretrained.formats.limits import file_errors
from finetune_jax.pretrained.formats.sharded import is_shard, shard_names
from finetune_jax.progress import say

# Weight files of a repository; the first of them that exists is opened.
REPOSITORY_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "flax_model.msgpack",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SOURCE = re.compile(r"([\w.-]+/[\w.-]+)(?:@([^/@]+))?(?:/(.+))?")
_WEIGHTS = re.compile(r".*\.(safetensors|msgpack|bin|npz|h5|keras|pth|pt)(\.index\.json)?")


def resolve_hub(source: str) -> Path:
    """The path of the file ``owner/name[@revision][/file]``, downloaded if necessary.

    A file in the cache is used without any network access. If the source names no file, the result
    is the first of `REPOSITORY_FILES` in the repository, or its only ``.npz``. For an index, all of
    its shards are downloaded too.

    Raises:
      UserError: the source is malformed, huggingface_hub is missing, there is no such file or a
        choice of several, or the file is not available. The message says what to do.
    """
    repository, file = _open(source)
    name = file or repository.choose()
    path = repository.fetch(name)
    if name.endswith(".index.json"):
        with file_errors(path, "index of shards"):
            shards = sorted(set(shard_names(path.read_bytes()).values()))
        folder = name.rpartition("/")[0]
        for shard in shards:
            repository.fetch(f"{folder}/{shard}" if folder else shard)
    return path


def cached_file(source: str) -> Path | None:
    """As `resolve_hub`, without any download: None if a file is not in the cache."""
    repository, file = _open(source)
    path = repository.cached_path(file)
    if path is None or not path.name.endswith(".index.json"):
        return path
    with file_errors(path, "index of shards"):
        shards = {*shard_names(path.read_bytes()).values()}
    return path if all((path.parent / shard).is_file() for shard in shards) else None


def fetch_companions(source: str, names: Sequence[str], *, fetch: bool) -> Path | None:
    """The folder of a repository's weight file, with the named files if the repository has them.

    Args:
      source: see `resolve_hub`.
      names: paths of files in the folder of the weight file; each may be missing.
      fetch: whether missing files, and the weight file, are downloaded; without it, the result is
        None for a weight file that is not in the cache.
    """
    repository, file = _open(source)
    if not fetch:
        path = repository.cached_path(file)
        return path and path.parent
    weights = resolve_hub(source)
    folder = file.rpartition("/")[0]
    for name in names:
        if not repository.fetch_if_there(f"{folder}/{name}" if folder else name):
            break
    return weights.parent


def _open(source: str) -> tuple[_Repository, str]:
    """The repository of a source, and the name of the file; '' if the source names none."""
    match = _SOURCE.fullmatch(source)
    if match is None or ".." in source.split("/"):
        raise UserError(f"hf:{source}: expected hf:owner/name[@revision][/file]")
    try:
        import huggingface_hub
        from huggingface_hub.constants import HF_HUB_CACHE

        require_library(huggingface_hub)
    except ImportError:
        raise lacks(f"hf:{source}", "the library huggingface_hub", "hub") from None
    logger = logging.getLogger("huggingface_hub.utils._http")
    if not any(isinstance(found, _RetriesOnce) for found in logger.filters):
        logger.addFilter(_RetriesOnce())
    cache = Path(HF_HUB_CACHE)
    return _Repository(huggingface_hub, cache, source, match[1], match[2]), match[3] or ""


class _RetriesOnce(logging.Filter):
    """Reports once that the hub does not answer; huggingface_hub logs two lines for each retry."""

    _said = False

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "thrown while requesting" not in text and "[Retry " not in text:
            return True
        if not self._said:
            self._said = True
            say("the Hugging Face hub does not answer; trying again for up to half a minute")
        return False


class _Repository:
    """One revision of a repository, in the cache or on the hub."""

    def __init__(
        self, library: Any, cache: Path, source: str, name: str, revision: str | None
    ) -> None:
        self._library, self._cache = library, cache
        self._source, self._name, self._revision = source, name, revision

    def choose(self) -> str:
        """The file to open, if the source names no file."""
        return self._choice(self._cached_names()) or self._choice(
            self._ask(lambda: self._library.list_repo_files(self._name, revision=self._revision)),
            demanded=True,
        )

    def _choice(self, names: Sequence[str], demanded: bool = False) -> str:
        for name in REPOSITORY_FILES:
            if name in names:
                return name
        archives = sorted(name for name in names if name.endswith(".npz"))
        if len(archives) == 1:
            return archives[0]
        weights = sorted(name for name in names if _WEIGHTS.fullmatch(name))
        if archives or demanded:
            choices = ", ".join(weights[:20]) or "none"
            raise UserError(
                f"hf:{self._source}: expected one of {', '.join(REPOSITORY_FILES)} or one .npz; "
                f"append '/' and a file name. Its weight files: {choices}"
            )
        return ""

    def _cached_names(self) -> list[str]:
        # The layout of the cache is documented. The library can only list the whole cache.
        folder = self._cache / f"models--{self._name.replace('/', '--')}"
        revision = self._revision or "main"
        try:
            reference = folder / "refs" / revision
            commit = reference.read_text().strip() if reference.is_file() else revision
            snapshot = folder / "snapshots" / commit
            if ".." in (commit, revision) or not snapshot.is_dir():
                return []
            return [p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()]
        except (OSError, ValueError):
            return []

    def fetch(self, name: str) -> Path:
        """The path of a file in the cache, downloaded if necessary."""
        try:
            cached = self._library.try_to_load_from_cache(
                self._name, name, cache_dir=self._cache, revision=self._revision
            )
        except ValueError as error:
            raise UserError(f"hf:{self._source}: {error}") from error
        if isinstance(cached, str):
            return Path(cached)
        return Path(
            self._ask(
                lambda: self._library.hf_hub_download(
                    self._name, name, cache_dir=self._cache, revision=self._revision
                ),
                name,
            )
        )

    def cached_path(self, file: str) -> Path | None:
        """The path of a weight file in the cache; None if the file is not there."""
        name = file or self._choice(self._cached_names())
        return self.fetch(name) if name in self._cached_names() else None

    def fetch_if_there(self, name: str) -> bool:
        """Downloads a file that the repository may lack; False if the hub does not answer."""
        try:
            if self._library.try_to_load_from_cache(
                self._name, name, cache_dir=self._cache, revision=self._revision
            ):
                return True  # in the cache, or known there to be missing
            self._library.hf_hub_download(
                self._name, name, cache_dir=self._cache, revision=self._revision
            )
        except Exception as error:  # errors of several libraries, down to sockets
            return type(error).__name__ in ("EntryNotFoundError", "RemoteEntryNotFoundError")
        return True

    def _ask(self, request: Callable[[], Any], name: str = "") -> Any:
        """The result of a request to the hub; UserError with advice if the request fails."""
        try:
            return request()
        except Exception as error:  # errors of several libraries, down to sockets
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            revision = f" --revision {self._revision}" if self._revision else ""
            # The file next to a missing shard by name is another shard.
            near = nearest(name, self._cached_names()) if name and not is_shard(name) else ""
            raise UserError(
                f"hf:{self._source}: {name or 'the list of files'} is not in the cache "
                f"{self._cache} and the hub does not answer ({type(error).__name__}: {first:.200})."
                f"{near if near.startswith(' Did') else ''} Where there is a network, run: "
                f"hf download {self._name}{' ' + name if name else ''}{revision}"
            ) from error
