"""Measures the cost of loading a ViT-L-sized safetensors file, against a plain read of the file.

Command:
  python -m experiments.load_costs [--repeats=8]

The file has timm's names and random values (304 M parameters, 1.2 GB, f32). Each measurement is a
separate process. Time is the wall-clock time of the call. Memory is the growth of the peak resident
set size of the process during the call, divided by the bytes of the parameters. The plain read is
`safetensors.numpy.load_file`, which transposes and checks nothing. Our load transposes kernels into
our layout and checks every value; the SHA-256 of the file is computed afterwards in a thread, and
only ``digest`` waits for it. ``mesh`` splits the leaves over the devices of this machine.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags

_REPEATS = flags.DEFINE_integer("repeats", 8, "Repeats of each measurement; the median counts.")

_MODEL, _ORIGIN = "vit_l16", "timm"

# Script of a measuring process, which prints its time and memory.
_MEASURE = """
import json, resource, sys, time
import jax, numpy as np
from finetune_jax.models import build, initial_variables
from finetune_jax.pretrained import load
from safetensors.numpy import load_file
what, path = sys.argv[1:]
if what != "plain":
    model = build({model!r}, 1000)
    init = initial_variables(model, 224, stages=())
    from finetune_jax.pretrained.maps import maps_of
    maps_of({family!r})
if what == "mesh":
    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",))
    spec = jax.sharding.PartitionSpec
    def place(leaf, array):
        cut = array.ndim and array.shape[0] % jax.device_count() == 0
        sharding = jax.sharding.NamedSharding(mesh, spec("fsdp") if cut else spec())
        return jax.device_put(array, sharding)
else:
    place = None
def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before, began = held(), time.perf_counter()
if what == "plain":
    result = load_file(path)
else:
    result, manifest = load(path, {family!r}, init, place=place)
    jax.block_until_ready(result)
    what == "digest" and manifest.sha256
seconds = time.perf_counter() - began
# Of this program alone: getrusage's peak may be that of the process it was started from.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({{"seconds": seconds, "bytes": peak - before}}))
"""


def write_file(path: Path) -> int:
    """Writes the file; returns the number of bytes of its parameters."""
    import jax
    import numpy as np

    from finetune_jax import tree
    from finetune_jax.models import build, entry_of, initial_variables
    from finetune_jax.pretrained import save_as

    model = build(_MODEL, 1000)
    draw = np.random.default_rng(0)
    abstract = initial_variables(model, 224, stages=())
    values = jax.tree.map(lambda x: draw.standard_normal(x.shape, np.float32), abstract)
    save_as(path, values, entry_of(_MODEL).family, _ORIGIN, model.sizes)
    return sum(x.nbytes for x in tree.flatten(values).values())


def measure(what: str, path: Path) -> dict[str, float]:
    """Makes one measurement in a separate process."""
    from finetune_jax.models import entry_of

    code = _MEASURE.format(model=_MODEL, family=entry_of(_MODEL).family)
    flags_ = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"} if what == "mesh" else {}
    import os

    done = subprocess.run(
        [sys.executable, "-c", code, what, str(path)],
        check=True, capture_output=True, text=True, env={**os.environ, **flags_},
    )  # fmt: skip
    return json.loads(done.stdout)


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vit_l16.safetensors"
        size = write_file(path)
        kinds = ("plain", "load", "digest", "mesh")
        found: dict[str, list[dict[str, float]]] = {what: [] for what in kinds}
        measure("plain", path)  # puts the file into the cache of the system
        generator = random.Random(0)
        for _ in range(_REPEATS.value):
            for what in generator.sample(kinds, len(kinds)):
                found[what].append(measure(what, path))
    plain = statistics.median(r["seconds"] for r in found["plain"])
    fastest = min(r["seconds"] for r in found["plain"])
    print(f"{_MODEL}: {size / 1e9:.2f} GB of parameters; a plain read is 1.00")
    for what, results in found.items():
        seconds = statistics.median(r["seconds"] for r in results)
        memory = statistics.median(r["bytes"] for r in results)
        least = min(r["seconds"] for r in results) / fastest
        print(
            f"{what}: time {seconds / plain:.2f} (fastest of each: {least:.2f}), peak memory "
            f"{memory / size:.2f} of parameters"
        )


if __name__ == "__main__":
    app.run(main)
