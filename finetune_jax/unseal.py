"""Opens a sealed file to a folder.

  python -m finetune_jax.unseal --input=a.age --output=a --key_file=mine.key
  python -m finetune_jax.unseal --input=a.age --output=a --passphrase_file=secret.txt

The content is decrypted and checked under another name, and renamed when it is complete: after a
wrong key or a damaged file nothing is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from finetune_jax import cli
from finetune_jax.tables import shown

_INPUT = flags.DEFINE_string("input", None, "The sealed file.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write, new or empty.", required=True)
_KEY_FILE = flags.DEFINE_string("key_file", "", "File with the secret key.")
_PASSPHRASE_FILE = flags.DEFINE_string(
    "passphrase_file", "", "File whose first line is the passphrase."
)


def main(argv: Sequence[str]) -> None:
    """The command."""
    cli.no_inputs(argv)
    from finetune_jax.sealing import key_of, unseal

    output = Path(_OUTPUT.value)
    count = unseal(Path(_INPUT.value), output, key_of(_KEY_FILE.value, _PASSPHRASE_FILE.value))
    print(f"opened  {shown(output)}: {count} files")


if __name__ == "__main__":
    cli.run(main)
