"""What a sealed file holds: the files of a folder, each checked by size and SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from finetune_jax.errors import UserError
from finetune_jax.files import file_digest, parse_json
from finetune_jax.new_folder import new_folder
from finetune_jax.sealing.keys import Key, Lock, key_of

_MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 16 << 20
_PIECE = 1 << 20
_RUN_FILES = ("config.json", "quantize.json")
"""Files of a run that are sealed beside its artifact."""

_MEMORY = Path("/dev/shm")


def seal(folder: Path, output: Path, lock: Lock) -> int:
    """Seals an artifact, the artifact of a run, or an exported folder as one file.

    After an error there is no new file.

    Args:
      folder: the folder. Of a run, only ``artifact/`` and its config are sealed.
      output: the file to write; must not exist.
      lock: who can open the file.

    Returns:
      The number of sealed files.

    Raises:
      UserError: the folder is none of these, or the output exists.
    """
    files = _files_of(folder)
    if output.exists():
        raise UserError(f"--output={output} exists; expected a new file")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output={output}: the folder {output.parent} does not exist")
    beside = output.absolute().parent
    temporary = beside / f".{output.name}.{os.getpid()}"
    try:
        with tempfile.TemporaryFile(dir=beside) as archive, _private(temporary) as target:
            _pack(files, archive)
            size = archive.tell()
            archive.seek(0)
            lock.encrypt(archive, target, size)
            target.flush()
            os.fsync(target.fileno())
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return len(files)


def unseal(path: Path, output: Path, key: Key) -> int:
    """Opens a sealed file to a folder. After an error no part of the content is left.

    Args:
      path: the sealed file.
      output: the folder to write; must not exist, or be empty.
      key: the key.

    Returns:
      The number of files.

    Raises:
      UserError: another key, a changed or damaged file, or an output with content.
    """
    with new_folder(output) as folder:
        return _open_to(path, folder, key)


@contextlib.contextmanager
def opened(path: Path, key: Key) -> Iterator[Path]:
    """A folder in memory with the content of a sealed file; removed when the context ends.

    The folder is on the memory file system ``/dev/shm``, and only this user can read it.

    Raises:
      UserError: as `unseal`, or there is no such file system.
    """
    if not _MEMORY.is_dir():
        raise UserError(
            f"{path}: a sealed file is opened in {_MEMORY}, which this system does not have; "
            f"write the content to a folder with finetune_jax.unseal"
        )
    with tempfile.TemporaryDirectory(dir=_MEMORY) as name:
        _open_to(path, Path(name), key)
        yield Path(name)


@contextlib.contextmanager
def folder_at(path: Path, key_file: str, passphrase_file: str) -> Iterator[Path]:
    """The folder that a command reads: `path`, or the content of the sealed file there.

    Args:
      path: a folder, or a sealed file.
      key_file, passphrase_file: as of `key_of`; a passphrase is asked for if both are empty.

    Raises:
      UserError: as `opened`; or a key is given for a folder, which needs none.
    """
    if path.is_file():
        with opened(path, key_of(key_file, passphrase_file)) as folder:
            yield folder
        return
    if key_file or passphrase_file:
        raise UserError(f"{path} is no sealed file; a folder is read without a key")
    yield path


def _files_of(folder: Path) -> dict[str, Path]:
    """The files to seal, by their names in the archive."""
    if (folder / "artifact" / "artifact.json").is_file():
        found = {f"artifact/{name}": p for name, p in _below(folder / "artifact").items()}
        beside = {name: folder / name for name in _RUN_FILES if (folder / name).is_file()}
        return {**found, **beside}
    if not any((folder / name).is_file() for name in ("artifact.json", "agreement.json")):
        raise UserError(f"{folder}: expected a run, an artifact, or a folder that export wrote")
    return _below(folder)


def _below(folder: Path) -> dict[str, Path]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UserError(f"{path}: expected files and folders, found a link or a special file")
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path
    return found


def _pack(files: dict[str, Path], archive: BinaryIO) -> None:
    entries: dict[str, dict[str, Any]] = {
        name: {"size": path.stat().st_size, "sha256": file_digest(path)}
        for name, path in files.items()
    }
    manifest = json.dumps({"version": 1, "files": entries}, indent=1).encode()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(_member(_MANIFEST, len(manifest)), io.BytesIO(manifest))
        for name, path in files.items():
            with path.open("rb") as file:
                tar.addfile(_member(name, entries[name]["size"]), file)


def _member(name: str, size: int) -> tarfile.TarInfo:
    """A member without times, owners and modes, which would say where the file comes from."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


def _open_to(path: Path, folder: Path, key: Key) -> int:
    """Decrypts a sealed file and writes its members to a folder; returns their number."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a file that finetune_jax.seal wrote")
    with tempfile.TemporaryFile(dir=folder) as archive:
        key.decrypt(path, archive)
        archive.seek(0)
        try:
            return _unpack(archive, folder)
        except (tarfile.TarError, EOFError, ValueError, KeyError) as error:
            raise UserError(
                f"{path}: its content is not that of a sealed artifact: {error}"
            ) from None


def _unpack(archive: BinaryIO, folder: Path) -> int:
    with tarfile.open(fileobj=archive, mode="r:") as tar:
        first = tar.next()
        if first is None or first.name != _MANIFEST or not 0 < first.size <= _LARGEST_MANIFEST:
            raise UserError(f"the first member is not {_MANIFEST}")
        files = _entries(parse_json(_read(tar, first).read().decode()))
        left = dict(files)
        while (member := tar.next()) is not None:
            if member.name not in left or not member.isreg():
                raise UserError(f"the member {member.name!r:.80} is not in the list of files")
            entry = left.pop(member.name)
            if member.size != entry["size"]:
                raise UserError(f"{member.name!r:.80} has another size than in the list of files")
            target = folder.joinpath(*PurePosixPath(member.name).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            if _copied(_read(tar, member), target) != entry["sha256"]:
                raise UserError(f"{member.name!r:.80} has another checksum than in the list")
    if left:
        raise UserError(f"{len(left)} files of the list are missing, such as {next(iter(left))!r}")
    return len(files)


def _entries(manifest: Any) -> dict[str, dict[str, Any]]:
    """The list of files, with names that stay below the folder."""
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or manifest.get("version") != 1:
        raise UserError(f"{_MANIFEST} has another version or no list of files")
    for name, entry in files.items():
        parts = PurePosixPath(name).parts
        right = bool(parts) and ".." not in parts and not name.startswith("/") and "\0" not in name
        if not right or not isinstance(entry, dict) or {*entry} != {"size", "sha256"}:
            raise UserError(f"{_MANIFEST}: expected relative names with size and sha256")
    return files


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    file = tar.extractfile(member)
    if file is None:
        raise UserError(f"the member {member.name!r:.80} is no file")
    return file


def _copied(source: Any, target: Path) -> str:
    """Copies a member to a file in pieces; returns its SHA-256."""
    found = hashlib.sha256()
    with target.open("xb") as file:
        while piece := source.read(_PIECE):
            found.update(piece)
            file.write(piece)
    return found.hexdigest()


@contextlib.contextmanager
def _private(path: Path) -> Iterator[BinaryIO]:
    """A new file of the user's usual mode."""
    with path.open("xb") as file:
        yield file
