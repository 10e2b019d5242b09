"""Times decoding and augmenting against torch's DataLoader, and waiting for input in training.

  python -m experiments.input_speed decode [--images=400] [--repeats=5]
  python -m experiments.input_speed wait [--steps=60]

`decode` needs torch and torchvision (requirements-reference.txt). It writes photograph-like JPEGs
and measures four ways in turn: (1) our input, where one core of the host decodes the files and
resizes them to 224 x 224 pixels, and one jitted function applies random_resized_crop and flip;
(2) torch's DataLoader in one process, with torchvision's decoding by Pillow, Resize,
RandomResizedCrop, RandomHorizontalFlip and ToTensor; (3) the host part of our input alone; (4) the
host part in one worker process. Both sides decode in one thread; our augmentation also runs on the
CPU, in XLA's threads, where a training run would use its accelerator. Rates count from the second
batch.

`wait` runs the steps of configs/quickstart.py and prints the share of time in which the loop waits
for the next batch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
SIZE, BATCH, EPOCHS = 224, 50, 2


def write_pictures(folder: Path, count: int) -> None:
    """JPEGs of about 400 x 500 pixels: smooth shapes with noise, in two classes."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for i in range(count):
        coarse = generator.integers(0, 256, (12, 15, 3), np.uint8)
        picture = np.asarray(Image.fromarray(coarse).resize((500, 400), Image.Resampling.BICUBIC))
        noisy = picture + generator.normal(0, 6, picture.shape)
        path = folder / "train" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def ours(folder: Path, *, augment: bool, workers: int = 0) -> Callable[[], Iterator[int]]:
    """Our input over all images: yields the images of each batch when the batch is ready."""
    import jax

    from finetune_jax.data.augment import make_input_pipeline
    from finetune_jax.data.batches import Encoder, TrainBatches
    from finetune_jax.data.preprocess import ImagePreprocess
    from finetune_jax.data.sources import open_source
    from finetune_jax.tasks import Classification

    examples = open_source(f"folder:{folder}").read("train")
    preprocess = ImagePreprocess(SIZE, crop=0)
    encode = Encoder((preprocess, Classification(("a", "b"))))
    pipeline = make_input_pipeline(preprocess, "random_resized_crop + flip")
    change = jax.jit(lambda key, batch: pipeline(key, batch)[0])

    def run() -> Iterator[int]:
        batches = TrainBatches(examples, encode, BATCH, 0, workers=workers)
        for step, batch in enumerate(batches.iterate(0, EPOCHS * len(examples) // BATCH)):
            if augment:
                change(jax.random.key(step), batch).block_until_ready()
            yield BATCH

    return run


def torchs(folder: Path) -> Callable[[], Iterator[int]]:
    """Torchvision's input over all images: yields the images of each batch."""
    import torch

    # When imported, torchvision declares the shape of an operator that CPU builds of torch lack.
    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        from torchvision import datasets, transforms
    except RuntimeError:
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from torchvision import datasets, transforms

    torch.set_num_threads(1)
    chain = transforms.Compose(
        [
            transforms.Resize((SIZE, SIZE)),
            transforms.RandomResizedCrop(SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    images = datasets.ImageFolder(str(folder / "train"), chain)
    loader = torch.utils.data.DataLoader(images, BATCH, shuffle=True, drop_last=True)
    return lambda: (len(batch) for _ in range(EPOCHS) for batch, _ in loader)


def decode(images: int, repeats: int) -> None:
    """Measures the ways in turn; prints medians of images/s by wall-clock and processor time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder, images)
        ways = {
            "torch DataLoader": torchs(folder),
            "ours, decode + augment": ours(folder, augment=True),
            "ours, host part": ours(folder, augment=False),
            "ours, host part, 1 worker": ours(folder, augment=False, workers=1),
        }
        for way in ways.values():
            sum(way())  # compile, and fill the file cache
        wall: dict[str, list[float]] = {name: [] for name in ways}
        core: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                batches = way()
                next(batches)  # the first batch, after the workers have started
                began, used = time.perf_counter(), time.process_time()
                count = sum(batches)
                wall[name].append(count / (time.perf_counter() - began))
                core[name].append(count / (time.process_time() - used))
    base_wall = statistics.median(wall["torch DataLoader"])
    base_core = statistics.median(core["torch DataLoader"])
    print("| way | images/s | to torch | images per CPU second of this process | to torch |")
    print("|---|---|---|---|---|")
    for name in ways:
        a, b = statistics.median(wall[name]), statistics.median(core[name])
        own = "– | –" if "worker" in name else f"{b:.0f} | {b / base_core:.2f}"
        print(f"| {name} | {a:.0f} | {a / base_wall:.2f} | {own} |")


def wait(steps: int) -> None:
    """Prints the share of time in which a loop over the quickstart's steps waits for batches."""
    from finetune_jax.cli import load_config

    config = load_config(str(Path(__file__).parent.parent / "configs" / "quickstart.py"))
    config.train.steps = steps

    from finetune_jax.base_variables import load_variables
    from finetune_jax.data.batches import TrainBatches, cached
    from finetune_jax.mesh import put_batch
    from finetune_jax.setup import open_setup
    from finetune_jax.training.phase import PhaseRun

    setup = open_setup(config)
    phase = PhaseRun(setup, steps=steps)
    state, frozen = phase.create_state(load_variables(setup)[0])
    step = phase.compile_train_step()
    for kept, limit in (("decoded once", config.data.cache_bytes), ("decoded each time", 0)):
        examples = cached(setup.source.read("train"), setup.encode, limit)
        batches = TrainBatches(examples, setup.encode, config.train.batch_size, 0)
        waited, began, last = 0.0, 0.0, None
        source = batches.iterate(0, steps)
        for _ in range(steps):
            start = time.perf_counter()
            began = began or start
            batch = next(source)
            waited += time.perf_counter() - start
            state, last = step(state, frozen, put_batch(batch, setup.mesh))
            # Waits for the step, as a run does when it logs; otherwise steps would only be queued.
            float(last["loss"])
        total = time.perf_counter() - began
        print(
            f"{kept}: {1e3 * total / steps:.1f} ms per step, {1e3 * waited / steps:.2f} ms of them "
            f"({waited / total:.1%}) waiting for input"
        )


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("decode", "wait"))
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    if arguments.what == "decode":
        decode(arguments.images, arguments.repeats)
    else:
        wait(arguments.steps)


if __name__ == "__main__":
    main()
