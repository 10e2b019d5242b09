"""Keys and passphrases of sealed files, and the encryption itself, which pyrage does."""

from __future__ import annotations

import dataclasses
import getpass
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from finetune_jax.errors import UserError, lacks
from finetune_jax.progress import say

PASSPHRASE = "FINETUNE_JAX_PASSPHRASE"
"""Environment variable that may hold the passphrase."""

_SECRET, _PUBLIC = "AGE-SECRET-KEY-", "age1"
_LONGEST_FILE = 1 << 16
LARGEST_IN_MEMORY = 2 << 30
"""Bytes of the largest content that is sealed with a passphrase, which is done in memory."""


@dataclasses.dataclass(frozen=True)
class Lock:
    """What a file is sealed for: the public keys of recipients, or a passphrase.

    Attributes:
      recipients: public keys ``age1…``; whoever has the secret key of one of them can open the
        file.
      passphrase: the passphrase, if there are no recipients.
    """

    recipients: tuple[str, ...] = ()
    passphrase: str = dataclasses.field(default="", repr=False)

    def encrypt(self, source: BinaryIO, target: BinaryIO, size: int) -> None:
        """Encrypts everything that a file holds.

        Args:
          source: binary file to read from.
          target: binary file to write to.
          size: bytes of the source.

        Raises:
          UserError: a wrong public key, or a content that is too large for a passphrase.
        """
        pyrage = _pyrage()
        if self.recipients:
            pyrage.encrypt_io(source, target, [_recipient(pyrage, r) for r in self.recipients])
            return
        if size > LARGEST_IN_MEMORY:
            raise UserError(
                f"{size} bytes are sealed with a passphrase in memory, which is done up to "
                f"{LARGEST_IN_MEMORY}; seal for a key with --recipient"
            )
        target.write(pyrage.passphrase.encrypt(source.read(), self.passphrase))


@dataclasses.dataclass(frozen=True)
class Key:
    """What a sealed file is opened with: secret keys, or a passphrase.

    Attributes:
      identities: secret keys ``AGE-SECRET-KEY-…``.
      passphrase: the passphrase, if there are no secret keys.
    """

    identities: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    passphrase: str = dataclasses.field(default="", repr=False)

    def decrypt(self, path: Path, target: BinaryIO) -> None:
        """Decrypts a file; after an error the target may hold a part, which must be removed.

        Args:
          path: the sealed file.
          target: binary file to write to.

        Raises:
          UserError: another key or passphrase, or a file that was changed or is damaged.
        """
        pyrage = _pyrage()
        try:
            if self.identities:
                known = [pyrage.x25519.Identity.from_str(text) for text in self.identities]
                with path.open("rb") as source:
                    pyrage.decrypt_io(source, target, known)
            else:
                target.write(pyrage.passphrase.decrypt(path.read_bytes(), self.passphrase))
        except (pyrage.DecryptError, OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError):
                raise UserError(f"{path}: no such file") from None
            raise UserError(
                f"{path}: cannot be opened: {error}. The file is for another key, or it was "
                f"changed or is damaged"
            ) from None


def new_key(path: Path) -> str:
    """Writes a new secret key to a file that only its owner can read; returns the public key.

    Raises:
      UserError: the file exists.
    """
    identity = _pyrage().x25519.Identity.generate()
    public = str(identity.to_public())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UserError(f"{path} exists; a key is never written over another one") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(f"# public key: {public}\n{identity}\n")
    return public


def lock_of(recipients: Sequence[str], passphrase_file: str) -> Lock:
    """The lock that flags describe; without any, a passphrase is asked for.

    Args:
      recipients: public keys, or files with a public key in each line.
      passphrase_file: file whose first line is the passphrase; empty for none.

    Raises:
      UserError: both are given, a file is missing, or a text is no public key.
    """
    if recipients and passphrase_file:
        raise UserError("give either --recipient or --passphrase_file")
    if not recipients:
        return Lock(passphrase=_passphrase(passphrase_file, twice=True))
    found: list[str] = []
    for text in recipients:
        if text.startswith(_SECRET):
            raise UserError("--recipient: this is a secret key; expected the public key, age1…")
        found += [text] if text.startswith(_PUBLIC) else _lines(text, "--recipient", _PUBLIC)
    pyrage = _pyrage()
    for text in found:
        _recipient(pyrage, text)
    return Lock(tuple(found))


def key_of(key_file: str, passphrase_file: str) -> Key:
    """The key that flags describe; without any, a passphrase is asked for.

    Args:
      key_file: file with a secret key in each line; empty for none.
      passphrase_file: file whose first line is the passphrase; empty for none.

    Raises:
      UserError: both are given, or a file is missing or holds no key.
    """
    if key_file and passphrase_file:
        raise UserError("give either --key_file or --passphrase_file")
    if not key_file:
        return Key(passphrase=_passphrase(passphrase_file))
    lines = _lines(key_file, "--key_file", _SECRET)
    _warn_if_open(Path(key_file))
    pyrage = _pyrage()
    for text in lines:
        try:
            pyrage.x25519.Identity.from_str(text)
        except (pyrage.IdentityError, ValueError):
            raise UserError(f"--key_file={key_file}: a line is no secret key of age") from None
    return Key(tuple(lines))


def _lines(path: str, flag: str, start: str) -> list[str]:
    """The lines of a small file that begin in a certain way."""
    text = _small_file(path, flag)
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line.startswith(start)]
    if start == _PUBLIC and not found:  # the comment of a file with a secret key
        words = [line.removeprefix("# public key:").strip() for line in lines]
        found = [word for word in words if word.startswith(start)]
    if not found:
        raise UserError(f"{flag}={path}: no line begins with {start}")
    return found


def _small_file(path: str, flag: str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(_LONGEST_FILE + 1)
        if len(content) > _LONGEST_FILE:
            raise UserError(f"{flag}={path}: expected a small text file")
        return content.decode()
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"{flag}={path}: cannot be read: {reason}") from None


def _passphrase(path: str, twice: bool = False) -> str:
    """The passphrase from a file, the environment, or the terminal."""
    if path:
        words = _small_file(path, "--passphrase_file").splitlines()
        _warn_if_open(Path(path))
        found, where = (words[0] if words else ""), f"--passphrase_file={path}"
    elif PASSPHRASE in os.environ:
        found, where = os.environ[PASSPHRASE], f"the environment variable {PASSPHRASE}"
    elif sys.stdin.isatty():
        found, where = getpass.getpass("passphrase: "), "the passphrase"
        if twice and found != getpass.getpass("the same passphrase again: "):
            raise UserError("the two passphrases differ")
    else:
        raise UserError(
            f"expected --passphrase_file, a key, or the environment variable {PASSPHRASE}; there "
            f"is no terminal to ask for a passphrase"
        )
    if not found:
        raise UserError(f"{where}: the passphrase is empty")
    return found


def _warn_if_open(path: Path) -> None:
    if path.stat().st_mode & 0o077:
        say(f"{path} can be read by other users; chmod 600 keeps it to its owner")


def _recipient(pyrage: Any, text: str) -> Any:
    try:
        return pyrage.x25519.Recipient.from_str(text)
    except (pyrage.RecipientError, ValueError):
        raise UserError(f"--recipient={text}: expected a public key of age, age1…") from None


def _pyrage() -> Any:
    if find_spec("pyrage") is None:
        raise lacks("a sealed file", "pyrage", "seal")
    import pyrage

    return pyrage
