"""Signs a trained model, so that others can check who made it and that nothing was changed.

  python -m finetune_jax.sign --new_key=signer.pem
  python -m finetune_jax.sign --workdir=runs/a --key_file=signer.pem
  python -m finetune_jax.verify --workdir=runs/a --public_key=signer.pem.pub

The signature is an OpenSSF Model Signing bundle in the file model.sig of the artifact, or of an
exported folder. It covers every file there. Keys are P-256 keys in PEM files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from finetune_jax import cli
from finetune_jax.errors import UserError
from finetune_jax.tables import shown

_WORKDIR = flags.DEFINE_string("workdir", "", "A run, an artifact, or an exported folder.")
_KEY_FILE = flags.DEFINE_string("key_file", "", "PEM file with the private key.")
_NEW_KEY = flags.DEFINE_string(
    "new_key", "", "Write a new private key to this file, and sign nothing."
)


def main(argv: Sequence[str]) -> None:
    """The command."""
    cli.no_inputs(argv)
    from finetune_jax.sealing.signature import new_signing_key, sign

    if _NEW_KEY.value:
        public = new_signing_key(Path(_NEW_KEY.value))
        print(f"private key  {shown(_NEW_KEY.value)}: keep it to yourself")
        print(f"public key   {shown(public)}: for those who verify")
        return
    for name, value in (("workdir", _WORKDIR.value), ("key_file", _KEY_FILE.value)):
        if not value:
            raise UserError(f"--{name} is missing")
    print(f"signed  {shown(sign(Path(_WORKDIR.value), Path(_KEY_FILE.value)))}")


if __name__ == "__main__":
    cli.run(main)
