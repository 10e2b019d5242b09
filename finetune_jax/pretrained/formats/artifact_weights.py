"""The weights of an artifact folder, under the leaf paths of our models."""

from __future__ import annotations

from pathlib import Path

from finetune_jax.errors import UserError
from finetune_jax.pretrained.formats.limits import MAX_HEADER_BYTES, file_errors, parse_json
from finetune_jax.pretrained.formats.safetensors_file import open_safetensors
from finetune_jax.pretrained.formats.weights import Weights

CARD = "artifact.json"


def open_artifact(folder: Path) -> Weights:
    """Opens an artifact that holds all leaves, ``params/…`` and ``batch_stats/…``.

    Raises:
      UserError: the artifact is damaged, or holds only the leaves that differ from a base, whose
        name is in the message.
    """
    card = folder / CARD
    with file_errors(card, "artifact"):
        if card.stat().st_size > MAX_HEADER_BYTES:
            raise UserError(f"it is larger than {MAX_HEADER_BYTES} bytes")
        content = parse_json(card.read_bytes())
        contents = content.get("contents")
        if contents == "delta":
            base = content.get("base")
            base = base if isinstance(base, dict) else {}
            raise UserError(
                f"the artifact holds only what differs from its base {base.get('file')!r:.200} "
                f"(SHA-256 {base.get('sha256')!r:.80}), and is no complete weight file: repeat its "
                "run with --config.artifact.contents=all in another --workdir, or use the artifact "
                "with --base=BASE in predict, evaluate and export"
            )
        if contents != "all":
            raise UserError(f"'contents' is {contents!r:.80}; expected 'all' or 'delta'")
    file = folder / "model.safetensors"
    if not file.is_file():
        raise UserError(f"{file}: missing")
    return open_safetensors(file)
