"""Seals a trained model: one encrypted file that only its recipients can open.

  python -m finetune_jax.seal --new_key=mine.key
  python -m finetune_jax.seal --workdir=runs/a --output=a.age --recipient=age1…
  python -m finetune_jax.seal --workdir=runs/a --output=a.age --passphrase_file=secret.txt

Of a run, the artifact and the config are sealed; an artifact and a folder that `export` or
`quantize` wrote are sealed whole. The file has the age format. A recipient is a public key, or a
file with public keys. Without a recipient and without --passphrase_file, the passphrase comes from
the environment variable FINETUNE_JAX_PASSPHRASE or is asked for; it is never an argument.

`unseal` writes the content to a folder again. `predict`, `evaluate`, `export` and `verify` open a
sealed --workdir in memory, with --key_file or --passphrase_file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from finetune_jax import cli
from finetune_jax.errors import UserError
from finetune_jax.tables import shown, size

_WORKDIR = flags.DEFINE_string("workdir", "", "A run, an artifact, or an exported folder.")
_OUTPUT = flags.DEFINE_string("output", "", "File to write, such as model.age.")
_RECIPIENT = flags.DEFINE_list("recipient", [], "Public keys age1…, or files with public keys.")
_PASSPHRASE_FILE = flags.DEFINE_string(
    "passphrase_file", "", "File whose first line is the passphrase."
)
_NEW_KEY = flags.DEFINE_string(
    "new_key", "", "Write a new secret key to this file, and seal nothing."
)


def main(argv: Sequence[str]) -> None:
    """The command."""
    cli.no_inputs(argv)
    from finetune_jax.sealing import lock_of, new_key, seal

    if _NEW_KEY.value:
        public = new_key(Path(_NEW_KEY.value))
        print(f"secret key  {shown(_NEW_KEY.value)}: keep it; without it nothing can be opened")
        print(f"public key  {public}")
        return
    for name, value in (("workdir", _WORKDIR.value), ("output", _OUTPUT.value)):
        if not value:
            raise UserError(f"--{name} is missing")
    lock = lock_of(_RECIPIENT.value, _PASSPHRASE_FILE.value)
    output = Path(_OUTPUT.value)
    count = seal(Path(_WORKDIR.value), output, lock)
    print(f"sealed  {shown(output)}: {count} files, {size(output.stat().st_size)}")


if __name__ == "__main__":
    cli.run(main)
