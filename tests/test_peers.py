"""Processes of one run connect, or name the missing processes; threads stand for processes."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from finetune_jax import peers
from finetune_jax.errors import UserError
from finetune_jax.peers import meet


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.fixture(autouse=True)
def ended(monkeypatch):
    """The statuses with which processes would have ended, while one process stands for all."""
    made, statuses = [], []
    begin = peers.Peers.__init__

    def record(self, *arguments):
        made.append(self)
        begin(self, *arguments)

    monkeypatch.setattr(peers.Peers, "__init__", record)
    monkeypatch.setattr(peers, "leave", statuses.append)
    yield statuses
    for one in made:
        one._leaving = True


def meeting(port, processes, seconds=10.0):
    """The results or errors of `meet` for processes of (count, number)."""
    found = [None] * len(processes)

    def one(place, count, number):
        try:
            found[place] = meet("localhost", port, count, number, seconds)
        except UserError as error:
            found[place] = str(error)

    threads = [
        threading.Thread(target=one, args=[place, *process])
        for place, process in enumerate(processes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_processes_meet_in_any_order_and_the_port_is_free_again(port):
    found = meeting(port, [(3, 2), (3, 0), (3, 1)])
    assert all(isinstance(one, peers.Peers) for one in found)
    socket.create_server(("", port)).close()
    for number, one in zip((2, 0, 1), found, strict=True):
        one.leave(number, failed=False)
    assert not any(one.lost(0.1) for one in found)


@pytest.mark.parametrize(
    ("processes", "message"),
    [
        ([(3, 0), (3, 2)], "process 1 of 3 (0 to 2) did not come to localhost:{port} within 1 s"),
        ([(4, 0), (4, 2)], "processes 1, 3 of 4 (0 to 3) did not come to localhost:{port}"),
        ([(2, 1)], "process 0 of 2 (0 to 1) did not come to localhost:{port} within 1 s"),
        ([(3, 0), (3, 1), (3, 1)], "two processes came with the number 1"),
        ([(2, 0), (3, 1)], "process 0 was started with a count of 2 and process 1 with 3"),
        ([(2, 0), (3, 2)], "process 0 was started with a count of 2 and process 2 with 3"),
    ],
)
def test_all_say_in_one_line_what_is_wrong(port, processes, message):
    began = time.monotonic()
    for text in meeting(port, processes, seconds=1.0):
        assert text.startswith("--distributed: ") and message.format(port=port) in text
        assert "\n" not in text
    assert time.monotonic() - began < 5


def test_a_taken_port_is_named(port):
    with socket.create_server(("", port)):
        first, second = meeting(port, [(2, 0), (2, 1)], seconds=0.5)
    assert f"cannot listen at port {port}" in first and "process 0 of 2" in second


def test_another_program_at_the_port_is_no_process_of_the_run(port):
    with socket.create_server(("", port)) as server:

        def answer():
            connection, _ = server.accept()
            connection.sendall(b"220 mail.example.org\r\n")
            time.sleep(1)

        thread = threading.Thread(target=answer)
        thread.start()
        assert "another program answers" in meeting(port, [(2, 1)], seconds=1.0)[0]
        thread.join()


def test_process_0_waits_on_when_another_program_tries_the_port(port):
    def visit():
        time.sleep(0.2)
        with socket.create_connection(("localhost", port)) as visitor:
            visitor.sendall(b"GET / HTTP/1.1\r\n\r\n")
        meet("localhost", port, 2, 1, 5.0).leave(1, failed=False)

    thread = threading.Thread(target=visit)
    thread.start()
    meet("localhost", port, 2, 0, 5.0).leave(0, failed=False)
    thread.join()


def test_no_machine_of_this_name():
    with pytest.raises(UserError, match="no machine 'nowhere.invalid'"):
        meet("nowhere.invalid", 1, 2, 1, 5.0)


@pytest.mark.parametrize("told", [True, False])
def test_the_others_end_with_one_line_when_one_has_ended(port, told, ended, monkeypatch, capsys):
    monkeypatch.setattr(peers, "_GRACE_SECONDS", 0.2)
    first, second, third = meeting(port, [(3, 0), (3, 1), (3, 2)])
    if told:
        second.leave(1, failed=True)
    else:
        second._connections[0]._socket.shutdown(socket.SHUT_RDWR)
    assert "process 1 of this run (0 to 2) has ended" in first.lost(5.0)
    assert "process 1 of this run (0 to 2) has ended" in third.lost(5.0)
    end = time.monotonic() + 5
    while len(ended) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert ended[:2] == [1, 1]
    assert "see what process 1 printed\n" in capsys.readouterr().err


def test_a_process_that_ends_by_itself_keeps_its_own_message(port, ended, monkeypatch, capsys):
    monkeypatch.setattr(peers, "_GRACE_SECONDS", 0.2)
    first, second = meeting(port, [(2, 0), (2, 1)])
    second.leave(1, failed=True)
    first.leave(0, failed=True)
    time.sleep(0.5)
    assert (ended, capsys.readouterr().err) == ([], "")
