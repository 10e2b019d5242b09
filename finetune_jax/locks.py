"""One process at a time writes into a folder: a lock file that names its owner.

The lock ``.lock`` is taken over when the process of its owner is dead. On the same machine, the
number and the start time of the process show this, because the two together are never used twice.
For an owner on another machine the age of the file shows it, because a living owner touches the
file every 15 seconds. Ages are differences of two times of the same file system, so that clocks of
machines may differ. The file is created with its content by a hard link, and a dead lock is
replaced while the process holds a second lock. So exactly one of several processes gets the lock,
also over NFS.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from finetune_jax.disk import make_folder, unwritable
from finetune_jax.errors import Blocked
from finetune_jax.interruption import before_leaving
from finetune_jax.progress import say

NAME = ".lock"
"""Name of the lock file in its folder; names of further short-lived files start with it."""

_BEAT_SECONDS = 15.0
_LIMIT_SECONDS = 60.0  # age at which the lock of another machine, or a damaged lock, is dead
_POLL_SECONDS = 0.5
_LARGEST = 64 * 1024
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


@dataclasses.dataclass(frozen=True)
class Owner:
    """The content of a lock file.

    Attributes:
      id: random text that no other lock has.
      host: name of the machine.
      machine: identifies the processes that can see each other: host, boot and process namespace.
      pid: number of the process.
      started: start time of the process, as the system gives it.
      since: local time at which the lock was taken.
      command: command line of the process.
    """

    id: str
    host: str
    machine: str
    pid: int
    started: str
    since: str
    command: str

    def __str__(self) -> str:
        """The owner for a message, in one line whatever the file contains."""
        text = f"process {self.pid} on {self.host} since {self.since}: {self.command}"
        return text if text.isprintable() else repr(text)


class FolderLock:
    """The lock of a folder, as a context manager.

    Args:
      folder: the folder, which is created if it does not exist.
      name: the folder in messages, such as ``--workdir=DIR``.

    Raises:
      Blocked: another process owns the folder, or it cannot be written.
    """

    def __init__(self, folder: Path, name: str = "") -> None:
        self._name = name or str(folder)
        self._folder = folder.absolute()
        self._path = self._folder / NAME
        self._made = not folder.exists()
        make_folder(folder, self._name)
        me = Owner(
            uuid.uuid4().hex,
            socket.gethostname(),
            _machine(),
            os.getpid(),
            _start_of(os.getpid()),
            time.strftime("%Y-%m-%d %H:%M:%S"),
            shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]])[:500],
        )
        self._content = json.dumps(dataclasses.asdict(me)).encode()
        self._draft = self._folder / f"{NAME}.{me.id}.new"
        self._file = -1
        try:
            self._draft.write_bytes(self._content)
            try:
                self._claim(self._path)
                self._file = os.open(self._path, os.O_RDWR)
            finally:
                self._draft.unlink(missing_ok=True)
        except OSError as error:
            raise Blocked(unwritable(self._name, error)) from None
        before_leaving(self, self._remove)
        _HEARTBEAT.add(self)

    def _claim(self, path: Path) -> None:
        """Creates a lock file; takes it over if its owner is dead."""
        while True:
            try:
                self._create(path)
                return
            except FileExistsError:
                pass
            found = _read(path)
            if found is None:  # removed since
                continue
            owner, identity, modified = found
            if not _is_dead(owner, self._age(modified)):
                if owner and owner.machine != _machine():
                    self._await_beat(path, owner, modified)
                    continue
                raise Blocked(f"{self._name} is in use by {owner or 'another process'}")
            # Of all processes that find this owner dead, one at a time goes on from here.
            guard = self._folder / f"{NAME}.{identity}"
            self._claim(guard)
            try:
                again = _read(path)
                if again is not None and again[1] == identity:
                    replacement = self._draft.with_suffix(".taken")
                    replacement.write_bytes(self._content)
                    os.replace(replacement, path)
                    if path == self._path:
                        say(f"{self._name}: the lock of {owner or 'nobody'} is taken over")
                    return
            finally:
                guard.unlink(missing_ok=True)

    def _await_beat(self, path: Path, owner: Owner, modified: float) -> None:
        """Waits until an owner on another machine is silent for so long that it is dead.

        A scheduler starts a job on another machine seconds after it has killed it on the first one.

        Raises:
          Blocked: the owner is alive.
        """
        say(f"{self._name}: waiting to see whether {owner} is alive")
        while (found := _read(path)) and found[1] == owner.id:
            if found[2] != modified:
                raise Blocked(f"{self._name} is in use by {owner}")
            if _is_dead(owner, self._age(modified)):
                return
            time.sleep(_POLL_SECONDS)

    def _age(self, modified: float) -> float:
        """Seconds since a time of the file system, by the clock of the file system."""
        os.utime(self._draft)
        return self._draft.stat().st_mtime - modified

    def _create(self, path: Path) -> None:
        try:
            os.link(self._draft, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # The file is empty for a moment; a process that reads the empty file treats the lock as
            # alive.
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            os.write(file, self._content)
            os.close(file)

    def require(self) -> None:
        """Checks that this process still owns the folder.

        Raises:
          Blocked: the lock was removed, or was taken over while this process stood still.
        """
        if not self._is_ours():
            found = _read(self._path)
            if not self._folder.is_dir():
                raise Blocked(f"{self._name} was removed while this process wrote into it")
            now = f"is in use by {found[0] or 'another process'}" if found else "has no lock"
            raise Blocked(
                f"{self._name} {now}, though this process had locked it; this process ends, so "
                f"that no two write into one folder"
            )

    def _is_ours(self) -> bool:
        try:
            there, ours = os.stat(self._path), os.fstat(self._file)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def beat(self) -> None:
        """Tells other machines that the owner is alive."""
        with contextlib.suppress(OSError):
            os.utime(self._file)

    def release(self) -> None:
        """Removes the lock, if it is still the lock of this object."""
        if self._file < 0:
            return
        _HEARTBEAT.remove(self)
        before_leaving(self, None)
        self._remove()
        with contextlib.suppress(OSError):
            os.close(self._file)
        self._file = -1
        if self._made:
            with contextlib.suppress(OSError):  # the folder has files in most cases
                self._folder.rmdir()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            if self._is_ours():
                self._path.unlink()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


@contextlib.contextmanager
def writing(*files: Path) -> Iterator[None]:
    """Locks the folders of the runs and ablations that contain some files, if there are any."""
    owners = ((p for p in file.absolute().parents if _is_owned(p)) for file in files)
    folders = {folder for found in owners if (folder := next(found, None))}
    with contextlib.ExitStack() as locks:
        for folder in sorted(folders):
            locks.enter_context(FolderLock(folder))
        yield


def _is_owned(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "results.jsonl").is_file()


class _Heartbeat:
    """The thread that touches all lock files of this process; it runs until the last lock ends."""

    def __init__(self) -> None:
        self._locks: dict[int, FolderLock] = {}
        self._changed = threading.Condition()
        self._running = False

    def add(self, lock: FolderLock) -> None:
        with self._changed:
            self._locks[id(lock)] = lock
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="locks", daemon=True).start()

    def remove(self, lock: FolderLock) -> None:
        with self._changed:
            self._locks.pop(id(lock), None)
            self._changed.notify()

    def _run(self) -> None:
        last = time.monotonic()
        with self._changed:
            while self._locks:
                self._changed.wait(max(0.0, last + _BEAT_SECONDS - time.monotonic()))
                if time.monotonic() - last >= _BEAT_SECONDS:
                    last = time.monotonic()
                    for lock in self._locks.values():
                        lock.beat()
            self._running = False


_HEARTBEAT = _Heartbeat()


def _read(path: Path) -> tuple[Owner | None, str, float] | None:
    """(owner, identity, time of the last beat) of a lock file; None if the file does not exist.

    The owner of a damaged file is None. The identity changes when another process takes the lock.
    """
    try:
        # An NFS client asks the server for the current times when it opens a file.
        with path.open("rb") as file:
            content, status = file.read(_LARGEST), os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    try:
        owner = Owner(**json.loads(content))
        right = all(isinstance(v, int if k == "pid" else str) for k, v in vars(owner).items())
        if right and owner.id.isalnum() and owner.pid > 0:
            return owner, owner.id, status.st_mtime
    except (ValueError, TypeError, RecursionError):
        pass
    return None, f"damaged-{status.st_ino}-{status.st_mtime_ns}", status.st_mtime


def _is_dead(owner: Owner | None, age: float) -> bool:
    if owner and owner.machine == _machine():
        return _start_of(owner.pid) != owner.started
    return age > _LIMIT_SECONDS


@functools.cache
def _machine() -> str:
    """Identifies this machine since its last boot, and the namespace of its process numbers."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _start_of(pid: int) -> str:
    """When a process started, in the form of the system; empty if no such process is alive."""
    if Path("/proc/self/stat").exists():
        try:
            status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return ""
        # The name of the program, in parentheses, may contain spaces and parentheses.
        fields = status.rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass  # a living process of another user
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "alive"
    except OSError:
        return "alive"
