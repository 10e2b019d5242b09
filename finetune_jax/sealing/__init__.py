"""Artifacts in one encrypted file: the age format, through pyrage, around a list of checked files.

The format of the encryption is age (https://age-encryption.org/v1), so that a sealed file can be
opened by other programs of this format, too. What is encrypted is a tar archive whose first member
lists every other member with its size and its SHA-256.
"""

from finetune_jax.sealing.content import folder_at, opened, seal, unseal
from finetune_jax.sealing.keys import Key, Lock, key_of, lock_of, new_key

__all__ = [
    "Key",
    "Lock",
    "folder_at",
    "key_of",
    "lock_of",
    "new_key",
    "opened",
    "seal",
    "unseal",
]
