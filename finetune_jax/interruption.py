"""SIGINT and SIGTERM: a command finishes its step, saves, and says how to go on.

The handlers are installed by commands alone, so that a notebook keeps its KeyboardInterrupt. The
first signal raises `Interrupted` at once where no work would be lost. Inside of `held`, such as
between two checkpoints of a training run, the first signal is only noted, and the code asks
`signal_number` after each step. A second signal ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

# A terminal and a wrapper, such as srun or make, may both deliver what the user sent once.
_SAME_SIGNAL_SECONDS = 0.5
_PARENT_POLL_SECONDS = 0.5


class Interrupted(BaseException):
    """A signal asked this process to end, and what it had computed is saved.

    Like KeyboardInterrupt, the class is no Exception, so that no handler of errors takes it.

    Attributes:
      number: number of the signal.
      saved: whether a checkpoint was saved for this signal.
    """

    def __init__(self, number: int, text: str = "interrupted", *, saved: bool = False) -> None:
        super().__init__(text)
        self.number, self.saved = number, saved

    @property
    def status(self) -> int:
        """Exit status of a process that ends for the signal: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


class _Signals:
    """The signals that this process has received; see the functions of this module."""

    def __init__(self) -> None:
        self.number = 0
        self.first: tuple[int, float] | None = None  # number and time that `watch` has seen
        self.holds = 0
        self.watched: set[int] = set()
        self.cleanups: dict[int, Callable[[], None]] = {}

    def handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.number:  # `watch` ends the process
            return
        self.number = number
        if not self.holds:
            raise Interrupted(number)

    def watch(self, wakeup: socket.socket) -> None:
        """Ends the process at a second signal, also while the main thread is inside of a library.

        Python calls a handler only when the main thread is back in Python.
        """
        while data := wakeup.recv(1):
            number = data[0]
            if number not in self.watched:
                continue
            now = time.monotonic()
            if self.first is None:
                self.first = number, now
            elif number != self.first[0] or now - self.first[1] > _SAME_SIGNAL_SECONDS:
                leave(128 + number)


_SIGNALS = _Signals()


def install(numbers: Sequence[int] = (signal.SIGINT, signal.SIGTERM)) -> None:
    """Installs the handlers; does nothing outside of the main thread.

    A signal that is ignored stays ignored: a shell starts its background jobs like this.

    Args:
      numbers: numbers of the signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if not _SIGNALS.watched:
        receive, send = socket.socketpair()
        send.setblocking(False)
        signal.set_wakeup_fd(send.detach(), warn_on_full_buffer=False)
        threading.Thread(target=_SIGNALS.watch, args=[receive], daemon=True).start()
        # A forked process shares the socket, and would end this process by its own signals.
        os.register_at_fork(after_in_child=_uninstall)
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            _SIGNALS.watched.add(number)
            signal.signal(number, _SIGNALS.handle)


def _uninstall() -> None:
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS.watched:
        signal.signal(number, signal.SIG_DFL)


def forget() -> None:
    """Forgets the signal, in a process that goes on after `Interrupted`."""
    _SIGNALS.number, _SIGNALS.first = 0, None


def note(number: int) -> None:
    """Does what the handler of a signal does: raises `Interrupted`, or notes the signal if held."""
    _SIGNALS.handle(number, None)


def signal_number() -> int:
    """Returns the number of the signal that asked this process to end; 0 if there was none."""
    return _SIGNALS.number


@contextlib.contextmanager
def held() -> Iterator[None]:
    """In this context a signal raises nothing; the code asks `signal_number` and saves first.

    Several contexts may be open at the same time. The end of the last context raises
    `Interrupted` if there was a signal.
    """
    _SIGNALS.holds += 1
    try:
        yield
    finally:
        _SIGNALS.holds -= 1
    if _SIGNALS.number and not _SIGNALS.holds:
        raise Interrupted(_SIGNALS.number)


def before_leaving(owner: Any, cleanup: Callable[[], None] | None) -> None:
    """Registers what `leave` calls, which ends the process without ``finally`` and ``atexit``.

    Args:
      owner: object that the call belongs to.
      cleanup: function that is called; None removes the function of this owner.
    """
    _SIGNALS.cleanups.pop(id(owner), None)
    if cleanup:
        _SIGNALS.cleanups[id(owner)] = cleanup


def leave(status: int) -> NoReturn:
    """Ends the process at once with an exit status, from any thread."""
    for cleanup in list(_SIGNALS.cleanups.values()):
        with contextlib.suppress(Exception):
            cleanup()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def end_with_parent(parent: int) -> None:
    """Sends this process SIGTERM when its parent has ended; the parent may have been killed.

    Args:
      parent: process id of the parent.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
