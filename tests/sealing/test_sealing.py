"""Sealed files: what goes in comes out, and nothing else ever does."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile

import pytest
from commands import run_command

from finetune_jax import tree
from finetune_jax.artifact import Artifact
from finetune_jax.errors import UserError
from finetune_jax.sealing import (
    Key,
    Lock,
    folder_at,
    key_of,
    lock_of,
    new_key,
    opened,
    seal,
    unseal,
)

pytest.importorskip("pyrage")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """(file with the secret key, lock, key)."""
    path = tmp_path_factory.mktemp("keys") / "mine.key"
    public = new_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    return path, Lock((public,)), key_of(str(path), "")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder as `export` writes it, with files in folders."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    (folder / "inner").mkdir(parents=True)
    (folder / "agreement.json").write_text("{}")
    (folder / "inner" / "weights.bin").write_bytes(random.Random(0).randbytes(200_000))
    (folder / "empty").write_text("")
    return folder


@pytest.fixture(scope="module")
def sealed(exported, keys, tmp_path_factory):
    path = tmp_path_factory.mktemp("sealed") / "model.age"
    assert seal(exported, path, keys[1]) == 3
    return path


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_what_was_sealed_comes_out_byte_by_byte(exported, sealed, keys, tmp_path):
    assert sealed.read_bytes().startswith(b"age-encryption.org/v1\n")
    assert unseal(sealed, tmp_path / "out", keys[2]) == 3
    assert contents(tmp_path / "out") == contents(exported)
    with opened(sealed, keys[2]) as folder:
        assert contents(folder) == contents(exported)
        assert folder.is_relative_to("/dev/shm") and folder.stat().st_mode & 0o77 == 0
    assert not folder.exists()


@pytest.mark.slow
def test_a_passphrase_opens_what_it_sealed_and_no_other(exported, tmp_path, monkeypatch):
    secret, other = tmp_path / "secret", tmp_path / "other"
    secret.write_text("correct horse\n")
    other.write_text("correct house\n")
    seal(exported, tmp_path / "m.age", lock_of([], str(secret)))
    with pytest.raises(UserError, match="another key, or it was changed"):
        unseal(tmp_path / "m.age", tmp_path / "out", key_of("", str(other)))
    monkeypatch.setenv("FINETUNE_JAX_PASSPHRASE", "correct horse")
    assert unseal(tmp_path / "m.age", tmp_path / "out", key_of("", "")) == 3
    assert "correct" not in repr(lock_of([], str(secret))) + repr(key_of("", str(secret)))


def test_another_key_opens_nothing(sealed, tmp_path):
    new_key(tmp_path / "other.key")
    with pytest.raises(UserError, match="for another key"):
        unseal(sealed, tmp_path / "out", key_of(str(tmp_path / "other.key"), ""))
    assert {p.name for p in tmp_path.iterdir()} == {"other.key"}


def mutated(content: bytes, chance: random.Random) -> bytes:
    """The content with bits flipped, cut off, pieces swapped or repeated, or bytes added."""
    kind, size = chance.randrange(6), len(content)
    place, chunk = chance.randrange(size), 64 * 1024 + 16
    if kind == 0:
        return (
            content[:place]
            + bytes([content[place] ^ 1 << chance.randrange(8)])
            + content[place + 1 :]
        )
    if kind == 1:
        return content[:place]
    if kind == 2:
        return content + chance.randbytes(chance.randrange(1, 64))
    body = content.index(b"\n--- ") + 4 + 44
    start = body + 16
    first, second = content[start : start + chunk], content[start + chunk : start + 2 * chunk]
    if kind == 3:
        return content[:start] + second + first + content[start + 2 * chunk :]
    if kind == 4:
        return content[:start] + first + content[start:]
    header = bytearray(content[:body])
    header[chance.randrange(len(header))] = chance.randrange(256)
    return bytes(header) + content[body:]


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_changed_file_is_accepted_and_none_leaves_plaintext(sealed, keys, tmp_path, count):
    content, chance = sealed.read_bytes(), random.Random(count)
    path = tmp_path / "changed.age"
    for _ in range(count):
        changed = mutated(content, chance)
        if changed == content:
            continue
        path.write_bytes(changed)
        with pytest.raises(UserError):
            unseal(path, tmp_path / "out", keys[2])
        assert {p.name for p in tmp_path.iterdir()} == {"changed.age"}


def archive(members, files=None):
    """A tar archive with a list of files, as someone with a recipient's public key can make it."""
    known = {
        n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in members.items()
    }
    manifest = json.dumps({"version": 1, "files": files or known}).encode()
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in {"manifest.json": manifest, **members}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return made.getvalue()


def linked():
    made = io.BytesIO(archive({}))
    entry = {"a": {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}}
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        manifest = json.dumps({"version": 1, "files": entry}).encode()
        first = tarfile.TarInfo("manifest.json")
        first.size = len(manifest)
        tar.addfile(first, io.BytesIO(manifest))
        link = tarfile.TarInfo("a")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return made.getvalue()


@pytest.mark.parametrize(
    "content, message",
    [
        (archive({"../a": b"x"}), "expected relative names"),
        (archive({"/tmp/a": b"x"}), "expected relative names"),
        (archive({"a": b"x"}, {"a": {"size": 1, "sha256": "0" * 64}}), "another checksum"),
        (archive({"a": b"x"}, {"a": {"size": 2, "sha256": "0" * 64}}), "another size"),
        (archive({"a": b"x"}, {"b": {"size": 1, "sha256": "0" * 64}}), "'a' is not in the list"),
        (archive({}, {"b": {"size": 1, "sha256": "0" * 64}}), "1 files of the list are missing"),
        (linked(), "'a' is not in the list"),
        (b"no archive", "not that of a sealed artifact"),
        (b"", "not that of a sealed artifact"),
    ],
    ids=["parent", "absolute", "checksum", "size", "stranger", "missing", "link", "text", "empty"],
)
def test_a_hostile_content_is_refused_and_nothing_is_left(keys, tmp_path, content, message):
    path = tmp_path / "hostile.age"
    with path.open("wb") as target:
        keys[1].encrypt(io.BytesIO(content), target, len(content))
    with pytest.raises(UserError, match=message):
        unseal(path, tmp_path / "out", keys[2])
    assert {p.name for p in tmp_path.iterdir()} == {"hostile.age"}


def test_bad_input_is_named(exported, sealed, keys, tmp_path):
    with pytest.raises(UserError, match="expected a run, an artifact, or a folder"):
        seal(tmp_path, tmp_path / "x.age", keys[1])
    with pytest.raises(UserError, match="exists; expected a new file"):
        seal(exported, sealed, keys[1])
    with pytest.raises(UserError, match="age1nothing: expected a public key"):
        lock_of(["age1nothing"], "")
    with pytest.raises(UserError, match="this is a secret key"):
        lock_of([keys[0].read_text().splitlines()[-1]], "")
    with pytest.raises(UserError, match="no line begins with AGE-SECRET-KEY"):
        key_of(str(exported / "agreement.json"), "")
    with pytest.raises(UserError, match="the passphrase is empty"):
        lock_of([], str(exported / "empty"))
    with pytest.raises(UserError, match="exists; a key is never written over"):
        new_key(keys[0])
    with pytest.raises(UserError, match="no terminal to ask"):
        key_of("", "")
    assert lock_of([str(keys[0])], "").recipients == keys[1].recipients


def test_a_sealed_run_is_read_as_its_folder(short_run, keys, tmp_path):
    path = tmp_path / "run.age"
    seal(short_run, path, keys[1])
    with folder_at(path, str(keys[0]), "") as folder:
        found = Artifact.load(folder)
        assert (folder / "config.json").read_bytes() == (short_run / "config.json").read_bytes()
        assert not (folder / "checkpoints").exists()
    assert tree.fingerprint(found.variables) == tree.fingerprint(Artifact.load(short_run).variables)
    with (
        pytest.raises(UserError, match="is no sealed file"),
        folder_at(short_run, str(keys[0]), ""),
    ):
        pass


@pytest.mark.slow
def test_commands_read_a_sealed_run_as_they_read_its_folder(short_run, keys, tmp_path):
    path = tmp_path / "run.age"
    seal(short_run, path, keys[1])
    for command in (["evaluate", "--split=test"], ["verify", "--json"]):
        plain = run_command(*command, f"--workdir={short_run}")
        ours = run_command(*command, f"--workdir={path}", f"--key_file={keys[0]}", "--trust"
                           if command[0] == "evaluate" else "--json")  # fmt: skip
        assert ours.returncode == 0, ours.stderr
        if command[0] == "evaluate":
            assert json.loads(ours.stdout)["accuracy"] == json.loads(plain.stdout)["accuracy"]
    wrong = run_command("evaluate", f"--workdir={short_run}", f"--key_file={keys[0]}")
    assert wrong.returncode == 2 and "is no sealed file" in wrong.stderr


def test_the_key_holds_no_secret_in_its_text(keys):
    assert "AGE-SECRET" not in repr(keys[2]) and isinstance(keys[2], Key)
