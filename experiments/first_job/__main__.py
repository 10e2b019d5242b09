"""The first job of a user with this package and with others: lines, commands, and time to a step.

The job: fine-tune a model whose weights are a file to a folder of photographs under three schemes
(the head alone, the last block and the head, everything), compare the schemes, predict a folder of
new photographs with the best one, and write weights that others can load. Each peer has a script
beside this file, written as the documentation of the peer writes such a script. The script measures
the time from the command to the end of the first training step, as the output of the command shows
it: three times each, the tools one after another in every round. The weights are random, because
nothing here is about accuracy.

Hardware: 2 CPU cores, minutes. The peers run in environments of their own.

Command:
  python -m experiments.first_job --reference=PYTHON [--fastai=PYTHON] [--repeats=3]
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

_REFERENCE = flags.DEFINE_string(
    "reference", None, "Python with torch, timm, transformers and keras.", required=True
)
_FASTAI = flags.DEFINE_string("fastai", "", "Python with fastai; the peer is left out without it.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Measurements of each tool; the median counts.")

HERE = Path(__file__).parent
OUT = HERE.parent / "first_job.md"

OURS = (
    "finetune-jax ablate --data=photos --model=resnet18 --weights=resnet18.pth "
    "--schemes='linear_probe,last_k(1),full' --workdir=compare",
    "finetune-jax predict --workdir=compare/runs/BEST new --output=predictions.csv",
    "finetune-jax export --workdir=compare/runs/BEST --format=safetensors --output=mine",
)
"""The commands of this package; the first one prints the folder that is called BEST here."""

# As the peers: batches of 16 and one epoch. Metrics are written at each step.
_AS_PEERS = ("--config.train.batch_size=16", "--config.train.epochs=1",
             "--config.log.every_steps=1")  # fmt: skip

_STEPS = {
    "timm": rb"probe step 0 loss",
    "keras": rb"(?<!\d)1/\S+ .*loss",
    "transformers": rb"'loss':",
    "fastai": rb"\[1/\d+ ",
}
"""What a peer prints after its first step."""

TELLS = {
    "ours": "sizes of the splits, classes, what trains, device; loss, accuracy with its interval "
    "and time left while it runs; a table of the schemes, each with the best of three rates, with "
    "intervals, paired tests, FLOPs and memory; that frozen leaves kept every bit",
    "timm": "what the script prints: loss of a step, accuracy of a scheme",
    "keras": "a bar with loss and accuracy, those of validation after an epoch",
    "transformers": "loss, gradient norm and rate of logged steps; loss and metrics of validation "
    "after an epoch; examples per second",
    "fastai": "a table with losses, accuracy and time of each epoch",
}
"""What each tool prints about the job, from the output of the commands."""

_WEIGHTS = """
import keras, timm, torch, transformers
torch.manual_seed(0)
torch.save(timm.create_model("resnet18").state_dict(), "resnet18.pth")
sizes = dict(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2])
config = transformers.ResNetConfig(**sizes, layer_type="basic", num_labels=1000)
transformers.ResNetForImageClassification(config).save_pretrained("resnet18")
processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 224})
processor.save_pretrained("resnet18")
model = keras.applications.MobileNet(
    input_shape=(224, 224, 3), include_top=False, pooling="avg", weights=None)
model.save_weights("mobilenet.weights.h5")
"""

_VERSIONS = "import importlib.metadata as m, sys; print(*(m.version(x) for x in sys.argv[1:]))"


def photographs(folder: Path) -> None:
    """160 pictures of 4 classes of 40 below ``photos``, and 12 more in ``new``."""
    from PIL import Image, ImageDraw

    generator = np.random.default_rng(0)
    for number in range(172):
        petals = 3 + number % 4
        image = Image.fromarray(generator.integers(60, 130, (96, 128, 3), dtype=np.uint8))
        draw = ImageDraw.Draw(image)
        for petal in range(petals):
            angle = 2 * np.pi * petal / petals
            x, y = 64 + 24 * np.cos(angle), 48 + 24 * np.sin(angle)
            draw.ellipse((x - 9, y - 9, x + 9, y + 9), fill=(230, 40 + number, 120))
        place = folder / ("new" if number >= 160 else f"photos/petals_{petals}")
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number}.jpg")


def lines(script: Path) -> int:
    """Lines of a script without its docstring and without empty lines."""
    text = script.read_text()
    first = ast.parse(text).body[0]
    return sum(bool(line.strip()) for line in text.splitlines()[first.end_lineno :])


def _ended(found: Path | bytes, output: Path, folder: Path) -> bool:
    """Whether the first step has ended: by what is printed, or by a row of ``metrics.jsonl``."""
    if isinstance(found, bytes):
        return bool(re.search(found, output.read_bytes()))
    return any('"train"' in path.read_text() for path in (folder / found).rglob("metrics.jsonl"))


def seconds_to_step(
    command: Sequence[str], made: Path, found: Path | bytes, variables: dict[str, str]
) -> float:
    """Seconds from a command to the end of its first step; the command is then ended.

    Args:
      command: the command.
      made: folder with the data and the weights, which is copied for the command.
      found: what is printed after a step, or the folder of the runs of this package.
      variables: environment variables.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name) / "job"
        shutil.copytree(made, folder)
        output = Path(name) / "output"
        with output.open("wb") as file:
            began = time.monotonic()
            process = subprocess.Popen(
                command, cwd=folder, stdout=file, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **variables}, start_new_session=True,
            )  # fmt: skip
            while not _ended(found, output, folder):
                if process.poll() is not None:
                    raise RuntimeError(output.read_text(errors="replace")[-3000:])
                time.sleep(0.02)
            seconds = time.monotonic() - began
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return seconds


def _tools() -> dict[str, tuple[list[str], Path | bytes, dict[str, str]]]:
    """By name: the command of a tool, what shows its first step, and environment variables."""
    import shlex

    ours = shlex.split(OURS[0])[2:]
    root = {"PYTHONPATH": str(HERE.parent.parent), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "finetune_jax.ablate", *ours, *_AS_PEERS]
    found: dict[str, tuple[list[str], Path | bytes, dict[str, str]]] = {
        "ours": (command, Path("compare"), root)
    }
    for name, step in _STEPS.items():
        python = _FASTAI.value if name == "fastai" else _REFERENCE.value
        if python:
            script = str(HERE / f"with_{name}.py")
            found[name] = ([python, script], step, {"KERAS_BACKEND": "torch"})
    return found


def written(found: dict[str, list[float]], versions: dict[str, str]) -> str:
    """The table as Markdown."""
    ours = statistics.median(found["ours"])
    table = [
        "| tool | lines to write | commands | seconds to the first step | ratio to ours | tells |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for name, times in found.items():
        middle = statistics.median(times)
        count, commands = (0, len(OURS)) if name == "ours" else (lines(HERE / f"with_{name}.py"), 1)
        table.append(
            f"| {versions[name]} | {count} | {commands} | {middle:.1f} "
            f"({min(times):.1f} to {max(times):.1f}) | {middle / ours:.2f} | {TELLS[name]} |"
        )
    head = f"""# The first job of a user, with this package and with others

Written by `python -m experiments.first_job` on {os.cpu_count()} CPU cores: the median of
{len(found["ours"])} measurements and their range. The job: a folder of photographs and a weight
file, three schemes, their comparison, predictions for a folder, and weights for others. The scripts
of the peers are in `experiments/first_job/`; each trains ResNet-18 at 224 pixels, and Keras, which
has none, MobileNet. timm's `train.py` is a script of its repository and not in the package, so the
script for timm is written with its library. Our first command tries three rates for each scheme;
the scripts of the peers have one.
"""
    return "\n".join([head, *table]) + "\n"


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    import finetune_jax

    tools = _tools()
    found: dict[str, list[float]] = {name: [] for name in tools}
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        photographs(made)
        subprocess.run(
            [_REFERENCE.value, "-c", _WEIGHTS],
            cwd=made,
            check=True,
            env={**os.environ, "KERAS_BACKEND": "torch"},
        )
        for _ in range(_REPEATS.value):
            for name, (command, step, variables) in tools.items():
                found[name].append(seconds_to_step(command, made, step, variables))
                print(name, f"{found[name][-1]:.1f} s", file=sys.stderr, flush=True)
    versions = {"ours": f"finetune_jax {finetune_jax.__version__}"}
    for name in _STEPS:
        if name in tools:
            call = [tools[name][0][0], "-c", _VERSIONS, name, "torch"]
            own, torch = subprocess.check_output(call, text=True).split()
            versions[name] = f"{name} {own} (torch {torch})"
    OUT.write_text(written(found, versions))


if __name__ == "__main__":
    app.run(main)
