"""The lock of a folder: one owner, and one of several processes replaces a dead owner."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from finetune_jax import locks
from finetune_jax.errors import UserError
from finetune_jax.interruption import leave
from finetune_jax.locks import NAME, FolderLock, writing


def owner(**changes):
    """The content of a lock of this process, which is alive and on this machine."""
    values = locks.Owner(
        "0123abcd", "elsewhere", locks._machine(), os.getpid(), locks._start_of(os.getpid()),
        "2026-01-02 03:04:05", "python -m finetune_jax.train --workdir=run",
    )  # fmt: skip
    return dataclasses.asdict(dataclasses.replace(values, **changes))


def write(folder, content, age=0.0):
    path = folder / NAME
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_second_owner_is_refused_with_the_first_in_one_line(tmp_path):
    with FolderLock(tmp_path / "run", "--workdir=run"):
        with pytest.raises(UserError) as error:
            FolderLock(tmp_path / "run", "--workdir=run")
        assert names(tmp_path / "run") == [NAME]
    message = str(error.value)
    assert f"--workdir=run is in use by process {os.getpid()} on " in message
    assert " since 20" in message and "python" in message and "\n" not in message
    with FolderLock(tmp_path / "run"):
        pass
    # A folder that the lock created, and that stayed empty, is removed.
    assert names(tmp_path) == []


def test_the_lock_is_removed_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), FolderLock(tmp_path):
        raise RuntimeError
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "age", "dead"),
    [
        (owner(), 1000, False),  # on this machine, the process decides and not the age
        (owner(pid=2**22 - 1), 0, True),
        (owner(started="1"), 0, True),  # the number of the process was used again
        (owner(machine="another"), 100, True),
        ("", 0, False),  # a lock that is being written
        ("", 100, True),
        ("{", 100, True),
        ("[" * 30000, 100, True),
        ('{"id": 3}', 100, True),
        (owner(id="../../x"), 100, True),
        (owner(pid="many"), 100, True),
    ],
)
def test_a_lock_is_taken_over_when_its_owner_is_dead(tmp_path, content, age, dead, capsys):
    path = write(tmp_path, content, age)
    before = path.read_bytes()
    if dead:
        with FolderLock(tmp_path) as lock:
            lock.require()
            assert json.loads(path.read_text())["pid"] == os.getpid()
        assert names(tmp_path) == []
        assert "is taken over" in capsys.readouterr().err
    else:
        with pytest.raises(UserError, match="in use by (process .* on elsewhere|another process)"):
            FolderLock(tmp_path)
        assert path.read_bytes() == before and names(tmp_path) == [NAME]


@pytest.mark.parametrize("beats", [True, False])
def test_an_owner_on_another_machine_is_given_time_to_beat(tmp_path, beats, monkeypatch, capsys):
    """A scheduler starts a killed job again elsewhere, long before its lock is old."""
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.01)
    path = write(tmp_path, owner(machine="another"), age=locks._LIMIT_SECONDS - 0.3)
    if beats:
        timer = threading.Timer(0.1, os.utime, [path])
        timer.start()
        with pytest.raises(UserError, match="in use by process"):
            FolderLock(tmp_path)
        timer.join()
    else:
        FolderLock(tmp_path).release()
    assert "waiting to see whether process" in capsys.readouterr().err


def test_a_killed_process_is_dead_before_its_parent_has_asked(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        write(tmp_path, owner(pid=process.pid, started=locks._start_of(process.pid)))
        with pytest.raises(UserError):
            FolderLock(tmp_path)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with FolderLock(tmp_path):
            pass
    finally:
        process.kill()
        process.communicate()


def test_nothing_of_a_foreign_lock_file_breaks_the_line(tmp_path):
    write(tmp_path, owner(command="a\x1b[2Jb\nerror: all is well"))
    with pytest.raises(UserError) as error:
        FolderLock(tmp_path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("links", [True, False])
def test_exactly_one_of_many_takes_a_dead_lock_over(tmp_path, links, monkeypatch):
    """Each thread stands for a process: a lock of this process is refused like any other."""
    if not links:

        def unsupported(*arguments):
            raise OSError(locks._NO_LINKS[0], "no links here")

        monkeypatch.setattr(os, "link", unsupported)
    for attempt in range(25):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        write(folder, owner(pid=2**22 - 1, id=f"dead{attempt}"))
        if attempt % 2:  # a process died while it took the lock over
            (folder / f"{NAME}.dead{attempt}").write_text(json.dumps(owner(pid=2**22 - 2, id="d2")))
        start, won, refused = threading.Barrier(8), [], []

        def take(start=start, won=won, refused=refused, folder=folder):
            start.wait()
            try:
                won.append(FolderLock(folder))
            except UserError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(refused)) == (1, 7), refused
        won[0].require()
        won[0].release()
        assert names(folder) == []


def test_an_owner_that_lost_its_lock_says_so(tmp_path):
    with FolderLock(tmp_path) as lock:
        (tmp_path / NAME).unlink()
        with pytest.raises(UserError, match="has no lock"):
            lock.require()
        with FolderLock(tmp_path) as second:
            with pytest.raises(UserError, match="in use by process"):
                lock.require()
            lock.release()
            second.require()


def test_a_folder_that_was_removed_is_named(tmp_path):
    with FolderLock(tmp_path / "run") as lock:
        (tmp_path / "run" / NAME).unlink()
        (tmp_path / "run").rmdir()
        with pytest.raises(UserError, match="run was removed"):
            lock.require()


def test_a_living_owner_beats_and_the_thread_ends_with_the_last_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_BEAT_SECONDS", 0.02)
    with FolderLock(tmp_path / "a"), FolderLock(tmp_path / "b"):
        for name in "ab":
            os.utime(tmp_path / name / NAME, (0, 0))
        end = time.monotonic() + 5
        while any((tmp_path / name / NAME).stat().st_mtime == 0 for name in "ab"):
            assert time.monotonic() < end
            time.sleep(0.01)
    end = time.monotonic() + 5
    while any(thread.name == "locks" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_leaving_at_once_removes_the_lock(tmp_path, monkeypatch):
    statuses = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    lock = FolderLock(tmp_path)
    leave(143)
    assert (statuses, names(tmp_path)) == ([143], [])
    lock.release()


def test_a_file_in_a_folder_of_a_run_locks_the_folder(tmp_path):
    (tmp_path / "run" / "pages").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    with FolderLock(tmp_path / "run"):
        with writing(tmp_path / "elsewhere.html"):
            pass
        page = tmp_path / "run" / "pages" / "page.html"
        with pytest.raises(UserError, match="in use by"), writing(page):
            pass
    with writing(page, tmp_path / "run" / "predictions.npz"):
        assert (tmp_path / "run" / NAME).is_file()


@pytest.mark.parametrize("kind", ["a file", "a link", "below a file"])
def test_what_is_no_folder_is_named(tmp_path, kind):
    place = tmp_path / "run"
    if kind == "a link":
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.write_text("")
        place = place / "below" if kind == "below a file" else place
    expected = {
        "a file": "it is a file",
        "a link": f"it is a link to {tmp_path / 'nowhere'}, which does not exist",
        "below a file": "Not a directory",
    }[kind]
    with pytest.raises(UserError) as error:
        FolderLock(place, f"--workdir={place}")
    assert str(error.value).startswith(f"--workdir={place}: cannot write there: ")
    assert expected in str(error.value)


def test_a_name_that_is_not_utf_8_is_refused(tmp_path):
    place = tmp_path / os.fsdecode(b"run\xff")
    with pytest.raises(UserError, match="not UTF-8") as error:
        FolderLock(place)
    str(error.value).encode()
    assert not place.exists()
