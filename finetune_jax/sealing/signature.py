"""Signatures of folders as OpenSSF Model Signing bundles, made and checked by model-signing.

The signature of a folder covers the SHA-256 of every file in it: a changed, a missing and an added
file are noticed. Keys are elliptic keys of the curve P-256 in PEM files; nothing is asked online.
"""

from __future__ import annotations

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetune_jax.errors import UserError, lacks

FILE = "model.sig"
"""Name of the signature in the signed folder."""


def sign(folder: Path, private_key: Path) -> Path:
    """Signs all files of a folder; an older signature is replaced.

    Args:
      folder: an artifact, a run's folder with ``artifact/`` in it, or an exported folder.
      private_key: PEM file of a P-256 key.

    Returns:
      The file with the signature.

    Raises:
      UserError: no such folder, or no key of this kind in the file.
    """
    folder = signed_folder(folder)
    library = _library()
    _require_key(private_key, "private", "--key_file")
    temporary = folder / f".{FILE}.{os.getpid()}"
    try:
        config = library.signing.Config().use_elliptic_key_signer(private_key=str(private_key))
        config.set_hashing_config(_hashing(library, folder, temporary))
        config.sign(str(folder), str(temporary))
        os.replace(temporary, folder / FILE)
    finally:
        temporary.unlink(missing_ok=True)
    return folder / FILE


def require_signature(folder: Path, public_key: Path) -> None:
    """Checks the signature of a folder.

    Args:
      folder: as of `sign`.
      public_key: PEM file of the public key of the signer.

    Raises:
      UserError: no signature, a signature of another key, or files that are not as they were
        signed.
    """
    folder = signed_folder(folder)
    library = _library()
    key_digest(public_key)
    if not (folder / FILE).is_file():
        raise UserError(f"{folder}: not signed, {FILE} is missing")
    try:
        config = library.verifying.Config().use_elliptic_key_verifier(public_key=str(public_key))
        config.set_hashing_config(_hashing(library, folder, folder / FILE))
        config.verify(str(folder), str(folder / FILE))
    except Exception as error:  # the library has no error class of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{folder / FILE}: the signature does not hold: {reason}") from None


def key_digest(public_key: Path) -> str:
    """The SHA-256 of a public key, by which people compare keys; UserError without such a key."""
    _library()
    return _require_key(public_key, "public", "--public_key")


def new_signing_key(path: Path) -> Path:
    """Writes a new private key, and its public key beside it with the suffix ``.pub``.

    Raises:
      UserError: one of the files exists.
    """
    _library()
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    public = path.with_name(f"{path.name}.pub")
    if public.exists() or path.exists():
        raise UserError(f"{path} or {public} exists; a key is never written over another one")
    key = ec.generate_private_key(ec.SECP256R1())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return public


def signed_folder(folder: Path) -> Path:
    """The folder that is signed: the artifact of a run, or the folder itself."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a run, an artifact or an export")
    return folder / "artifact" if (folder / "artifact").is_dir() else folder


def _hashing(library: Any, folder: Path, signature: Path) -> Any:
    # By default the library leaves out git's files, which someone could then add.
    ignored = [str(signature), str(folder / FILE)]
    return library.hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)


def _require_key(path: Path, kind: str, flag: str) -> str:
    """Checks that a file holds a P-256 key; returns the SHA-256 of the public key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    expected = f"{flag}={path}: expected a PEM file with a {kind} key of the curve P-256"
    try:
        content = path.read_bytes()
        if kind == "private":
            private: Any = serialization.load_pem_private_key(content, None)
            key: Any = private.public_key()
        else:
            key = serialization.load_pem_public_key(content)
    except OSError as error:
        raise UserError(f"{flag}={path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise UserError(f"{expected}, without a passphrase") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise UserError(f"{expected}, found another kind of key")
    return hashlib.sha256(
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


def _library() -> Any:
    if find_spec("model_signing") is None or find_spec("OpenSSL") is None:
        raise lacks("a signature", "model-signing", "sign")
    import model_signing
    import model_signing.hashing
    import model_signing.signing
    import model_signing.verifying

    return model_signing
