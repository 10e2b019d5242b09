"""Fine-tunes pretrained JAX models under named freezing schemes: one program for all commands.

  finetune-jax COMMAND [--flags]
  finetune-jax COMMAND --help
  finetune-jax --help=config      lists all keys of a config

`finetune-jax train` is the same as `python -m finetune_jax.train`.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from finetune_jax import __version__
from finetune_jax.ending import reported
from finetune_jax.errors import nearest

COMMANDS = {
    "train": "fine-tune (or pre-train) one model under one scheme",
    "evaluate": "score an artifact, or a weight file as it is, on a split",
    "predict": "predict image files or texts from an artifact alone",
    "plan": "show what a config would train and what that costs, before any step",
    "suggest": "propose what to unfreeze, from the gradients of a few batches",
    "average": "average fine-tuned models: interpolation between two, or a soup of several",
    "quantize": "store the weights of a trained model in 8 or 4 bits and say what this changes",
    "export": "write a trained model in a format that others read",
    "seal": "encrypt a trained model as one file, for the holders of a key or a passphrase",
    "sign": "sign a trained model, so that others can check who made it",
    "unseal": "write the content of a sealed file to a folder",
    "release": "write an artifact without what tells where and of what it was made",
    "replay": "compute a step that was not finite once more, stage by stage",
    "ablate": "compare schemes: every row tuned with the same budget and scored once",
    "verify": "check that the files of a run or of an ablation are whole",
    "quickstart": "run the main job end to end: four schemes, a table and a prediction",
    "models": "list the models: size, cost, input, published weights, licence",
    "pretrained": "look into weight files",
}
"""Each command, which is the module `finetune_jax.COMMAND`, and what the command does."""


def main() -> None:
    """Runs the command that the first argument names; absl reads the arguments after it."""
    with reported():
        _main()


def _main() -> None:
    command, *rest = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help", "help"):
        print(_help())
    elif command == "--help=config":
        from finetune_jax.config_keys import as_text

        print(as_text())
    elif command == "--version":
        print(__version__)
    elif command in COMMANDS:
        # As `python -m` does, a config and a door find modules in the current folder.
        if "" not in sys.path:
            sys.path.append("")
        sys.argv[1:] = rest
        # Each command defines its own flags at import: one command is imported, and no other.
        package = Path(__file__).parent / command
        if package.is_dir():  # read as a file, because importing the package is too slow for --help
            runpy.run_path(str(package / "__main__.py"), run_name="__main__")
        else:
            runpy.run_module(f"finetune_jax.{command}", run_name="__main__", alter_sys=True)
    else:
        print(f"error: no command {command!r}.{nearest(command, COMMANDS)}", file=sys.stderr)
        print("see: finetune-jax --help", file=sys.stderr)
        sys.exit(2)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {command:{width}}  {what}" for command, what in COMMANDS.items()]
    return "\n".join([__doc__ or "", "commands:", *lines])


if __name__ == "__main__":
    main()
