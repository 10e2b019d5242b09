"""Signatures: every change of a signed folder is noticed, by the name of the file."""

import random
import shutil

import pytest

from finetune_jax.errors import UserError
from finetune_jax.sealing.signature import FILE, new_signing_key, require_signature, sign
from finetune_jax.verification import verify_signature

pytest.importorskip("model_signing")
pytest.importorskip("OpenSSL")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """(private, public) files of a signer."""
    private = tmp_path_factory.mktemp("keys") / "signer.pem"
    public = new_signing_key(private)
    assert private.stat().st_mode & 0o777 == 0o600
    return private, public


@pytest.fixture
def signed(short_run, keys, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(short_run / "artifact", folder / "artifact")
    assert sign(folder, keys[0]) == folder / "artifact" / FILE
    return folder


def test_a_signature_holds_and_says_by_whom(signed, keys):
    require_signature(signed, keys[1])
    finding = verify_signature(signed, keys[1])
    assert finding.state == "ok" and len(finding.reason.split()[-1]) == 64
    sign(signed, keys[0])
    require_signature(signed, keys[1])


def test_every_change_is_noticed_by_name(signed, keys):
    folder, chance = signed / "artifact", random.Random(0)
    for path in sorted(p for p in folder.iterdir() if p.name != FILE):
        content = path.read_bytes()
        for _ in range(20):
            place = chance.randrange(len(content))
            flipped = bytes([content[place] ^ 1 << chance.randrange(8)])
            path.write_bytes(content[:place] + flipped + content[place + 1 :])
            with pytest.raises(UserError, match=path.name):
                require_signature(signed, keys[1])
        path.unlink()
        with pytest.raises(UserError, match=path.name):
            require_signature(signed, keys[1])
        path.write_bytes(content)
    (folder / "added.txt").write_text("added")
    with pytest.raises(UserError, match=r"added\.txt"):
        require_signature(signed, keys[1])
    (folder / "added.txt").rename(folder / ".gitignore")
    with pytest.raises(UserError, match="gitignore"):
        require_signature(signed, keys[1])


def test_another_key_is_not_the_signer(signed, keys, tmp_path):
    other = new_signing_key(tmp_path / "other.pem")
    with pytest.raises(UserError, match="the signature does not hold"):
        require_signature(signed, other)
    assert verify_signature(signed, other).state == "damaged"
    (signed / "artifact" / FILE).unlink()
    with pytest.raises(UserError, match="not signed"):
        require_signature(signed, keys[1])


def test_keys_of_another_kind_are_refused(signed, keys, tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    path = tmp_path / "ed.pem"
    key = ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(UserError, match="P-256, found another kind of key"):
        sign(signed, path)
    with pytest.raises(UserError, match="expected a PEM file with a private key"):
        sign(signed, keys[1])
    with pytest.raises(UserError, match="exists; a key is never written over"):
        new_signing_key(keys[0])
