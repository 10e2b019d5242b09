"""Processes of one run meet before JAX connects them, and notice when one of them ends.

JAX alone waits for minutes for a process that never comes, names none, and ends a process with a
stack dump when a port is taken or another process dies. Process 0 listens at the address of the
run until every other process has sent its number; then JAX uses the port. The connections stay
open, so that the other processes notice when a process ends and its connections close.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from finetune_jax.errors import UserError
from finetune_jax.interruption import leave

_GREETING = "finetune_jax"
_RETRY_SECONDS = 0.2
# Time in which a process that has connected must send its number.
_HELLO_SECONDS = 5.0
# Time in which a process, after another process has ended, may end with a message of its own.
_GRACE_SECONDS = 3.0


class Peers:
    """The other processes of a run.

    Args:
      connections: connections by number of the process at the other end: all others for process 0,
        process 0 for the others.
      count: number of processes.
    """

    def __init__(self, connections: dict[int, _Connection], count: int) -> None:
        self._connections, self._count = connections, count
        self._lost = threading.Event()
        self._leaving = False
        self._message = ""
        for number in connections:
            threading.Thread(target=self._watch, args=[number], daemon=True).start()

    def _watch(self, number: int) -> None:
        connection = self._connections[number]
        message = connection.receive(None)
        if message and "bye" in message:
            return
        ended = int(message["ended"]) if message else number
        self._message = (
            f"error: process {ended} of this run (0 to {self._count - 1}) has ended, so this "
            f"process ends too; see what process {ended} printed"
        )
        self._lost.set()
        for other in self._connections.keys() - {number}:
            self._connections[other].send({"ended": ended})
        if message:  # the other process may have ended for a reason that also ends this process
            time.sleep(_GRACE_SECONDS)
        if not self._leaving:
            print(self._message, file=sys.stderr)
            leave(1)

    def lost(self, seconds: float = _GRACE_SECONDS) -> str:
        """Returns the message about a process that has ended; waits for one to end, else empty."""
        return self._message if self._lost.wait(seconds) else ""

    def leave(self, number: int, *, failed: bool) -> None:
        """Tells the other processes that this process ends.

        Args:
          number: number of this process.
          failed: whether the others must end too; otherwise they end by themselves.
        """
        if self._leaving:
            return
        self._leaving = True
        for connection in self._connections.values():
            connection.send({"ended": number} if failed else {"bye": number})


class _Connection:
    """Sends and receives JSON objects, one on a line."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._socket = connection
        self._buffer = b""

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None) -> dict[str, Any] | None:
        """The next message; None after the end of the connection, or of the time.

        Raises:
          ValueError: what came is no message of another process.
        """
        self._socket.settimeout(seconds)
        try:
            while b"\n" not in self._buffer:
                part = self._socket.recv(4096)
                if not part:
                    return None
                self._buffer += part
                if len(self._buffer) > 65536:
                    raise ValueError("too long")
        except OSError:
            return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("no object")
        return message

    def close(self) -> None:
        self._socket.close()


def meet(host: str, port: int, count: int, number: int, seconds: float) -> Peers:
    """Waits until all processes of a run are there.

    Args:
      host: name or address of the machine of process 0.
      port: port at which process 0 listens, and which is free again afterwards.
      count: number of processes.
      number: number of this process.
      seconds: longest time to wait.

    Raises:
      UserError: on all processes that are there: numbers of processes are missing, one number was
        given to two processes, counts differ, or the port is taken.
    """
    end = time.monotonic() + seconds
    if number == 0:
        return Peers(_await_others(host, port, count, end, seconds), count)
    return Peers({0: _join(host, port, count, number, end, seconds)}, count)


def _await_others(
    host: str, port: int, count: int, end: float, seconds: float
) -> dict[int, _Connection]:
    there: dict[int, _Connection] = {}

    def refuse(text: str) -> NoReturn:
        for connection in there.values():
            connection.send({"error": text})
        raise UserError(f"--distributed: {text}")

    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(
            f"--distributed: process 0 cannot listen at port {port}: {error.strerror}; is another "
            f"run or another process 0 using the port?"
        ) from None
    with server:
        while missing := sorted({*range(1, count)} - there.keys()):
            for connection in there.values():
                connection.send({"missing": missing})
            for connection, hello in _hellos(server, end):
                problem = _problem(hello, count, there)
                if problem:
                    connection.send({"error": problem})
                    refuse(problem)
                there[hello["number"]] = connection
                break
            else:
                refuse(_absent(missing, count, f"{host}:{port}", seconds))
    for connection in there.values():
        connection.send({"go": True})
    return there


def _hellos(server: socket.socket, end: float) -> Iterator[tuple[_Connection, dict[str, Any]]]:
    """Connections of processes of runs of this package, until a time."""
    while (left := end - time.monotonic()) > 0:
        server.settimeout(left)
        try:
            accepted, _ = server.accept()
        except OSError:
            return
        connection = _Connection(accepted)
        with contextlib.suppress(ValueError):
            hello = connection.receive(min(_HELLO_SECONDS, left))
            if hello and hello.get("what") == _GREETING:
                yield connection, hello
                continue
        connection.close()  # another program, such as a port scanner


def _problem(hello: dict[str, Any], count: int, there: dict[int, _Connection]) -> str:
    number, other = hello.get("number"), hello.get("count")
    if other != count:
        return f"process 0 was started with a count of {count} and process {number} with {other}"
    if not isinstance(number, int) or not 0 < number < count:
        return f"a process came with the number {number}; expected 1 to {count - 1}"
    if number in there:
        return f"two processes came with the number {number}"
    return ""


def _absent(missing: list[int], count: int, address: str, seconds: float) -> str:
    one = len(missing) == 1
    return (
        f"process{'' if one else 'es'} {', '.join(map(str, missing))} of {count} (0 to "
        f"{count - 1}) did not come to {address} within {seconds:g} s; was each of them started? "
        f"--distributed_timeout sets the time"
    )


def _join(host: str, port: int, count: int, number: int, end: float, seconds: float) -> _Connection:
    missing, heard = [0], ""

    def refuse(text: str) -> NoReturn:
        raise UserError(f"--distributed: {text}")

    while (left := end - time.monotonic()) > 0:
        try:
            found = socket.create_connection((host, port), timeout=left)
        except socket.gaierror as error:
            refuse(f"no machine {host!r}: {error.strerror}")
        except OSError:
            time.sleep(_RETRY_SECONDS)
            continue
        connection = _Connection(found)
        connection.send({"what": _GREETING, "number": number, "count": count})
        while message := _heard(connection, end):
            if "error" in message:
                refuse(str(message["error"]))
            if "go" in message:
                return connection
            if "missing" not in message:
                heard = f"; another program answers at {host}:{port}"
                break
            missing = message["missing"]
        connection.close()
        time.sleep(_RETRY_SECONDS)
    refuse(_absent(missing, count, f"{host}:{port}", seconds) + heard)


def _heard(connection: _Connection, end: float) -> dict[str, Any] | None:
    try:
        return connection.receive(max(0.1, end - time.monotonic()))
    except ValueError:
        return {"what": "something else"}
