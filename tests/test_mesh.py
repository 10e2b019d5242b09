"""Eight devices: FSDP shards the state without changing losses; a probe exchanges few bytes."""

import functools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import QUICK_COMPILE, ROOT

from finetune_jax import tree
from finetune_jax.base_variables import load_variables
from finetune_jax.config import default
from finetune_jax.mesh import put_batch
from finetune_jax.models import MODELS, Entry, Inputs
from finetune_jax.models.vit import ViT
from finetune_jax.pretrained import save_native
from finetune_jax.setup import open_setup
from finetune_jax.training.phase import PhaseRun

STEPS = 3
MODELS["mesh_vit"] = Entry(
    "vit",
    functools.partial(ViT, width=192, depth=5, heads=3, patch=16),
    inputs=Inputs(32, crop=0),
    patch=16,
    dropout=True,
)
BATCH = 16
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def phase_run(scheme, data, fsdp):
    """One phase of a small ViT at 32 pixels on the digits' ten classes, under AdamW."""
    config = default()
    config.model.name, config.data.image_size = "mesh_vit", 32
    config.scheme = scheme
    config.train.batch_size = BATCH
    config.eval.batch_size = BATCH
    config.optimizer.update({"name": "adamw", "learning_rate": 1e-3, "schedule": "constant"})
    config.mesh.update({"data": data, "fsdp": fsdp})
    return PhaseRun(open_setup(config))


def train(data, fsdp):
    """Losses of some steps under `full`, and the placement of the state before and after them."""
    phase = phase_run("full", data, fsdp)
    generator = np.random.default_rng(0)
    variables = {
        "params": tree.map_with_path(
            lambda path, x: (
                path.endswith("scale") + 0.05 * generator.standard_normal(x.shape, np.float32)
            ).astype(np.float32),
            phase.abstract["params"],
        ),
        "batch_stats": {},
    }
    state, frozen = phase.create_state(variables)
    step = phase.compile_train_step()
    result = {"before": placement(state), "losses": []}
    for _ in range(STEPS):
        batch = {
            "image": generator.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8),
            "label": generator.integers(0, 10, BATCH, dtype=np.int32),
        }
        state, metrics = step(state, frozen, put_batch(batch, phase.setup.mesh))
        result["losses"].append(float(metrics["loss"]))
    return {**result, "after": placement(state)}


def load_cut(path):
    """Loads a file onto the mesh; returns the placement of the params, and their fingerprint."""
    phase = phase_run("full", 2, 4)
    phase.setup.config.pretrained.path = path
    params = load_variables(phase.setup)[0]["params"]
    shards = {
        p: [x.nbytes, x.addressable_shards[0].data.nbytes] for p, x in tree.flatten(params).items()
    }
    return {"shards": shards, "fingerprint": tree.fingerprint(params)}


def placement(state):
    """{leaf of params or moments: [bytes, bytes on each device, devices that hold the leaf]}."""
    found = {}
    parts = {"params": state.params, "opt_state": state.opt_state}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(parts):
        shards = [shard.data.nbytes for shard in leaf.addressable_shards]
        assert len(set(shards)) == 1
        found[jax.tree_util.keystr(keys)] = [leaf.nbytes, shards[0], len(shards)]
    return found


def collectives(scheme, data, fsdp):
    """{collective: bytes of all its results on one device} in the compiled step, and bytes."""
    phase = phase_run(scheme, data, fsdp)
    text = phase.compile_train_step().as_text()
    found = {}
    for name in COLLECTIVES:
        results = re.findall(rf"= (.*?) {name}(?:-start)?\(", text)
        shapes = re.findall(r"(pred|[a-z]+\d+)\[([\d,]*)\]", " ".join(results))
        found[name] = sum(
            (1 if kind == "pred" else int(re.sub(r"\D", "", kind)) // 8)
            * math.prod(int(n) for n in size.split(",") if n)
            for kind, size in shapes
        )
    trainable, _ = phase.plan.split(phase.abstract["params"])
    return {
        "bytes": found,
        "trainable": tree.nbytes(trainable),
        "model": tree.nbytes(phase.abstract["params"]),
    }


def on_eight_devices(call):
    """What a function of this file returns in a process with eight CPU devices."""
    paths = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    process = subprocess.run(
        [sys.executable, "-c", f"import json, test_mesh; print(json.dumps(test_mesh.{call}))"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {QUICK_COMPILE}",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def sharded():
    return on_eight_devices("train(data=2, fsdp=4)")


def test_fsdp_cuts_large_leaves_and_their_moments(sharded):
    for where in (sharded["before"], sharded["after"]):
        assert all(devices == 8 for _, _, devices in where.values())
        cut = {path for path, (whole, part, _) in where.items() if part < whole}
        assert all(where[path][1] * 4 == where[path][0] for path in cut)
        # Two kernels of each block's MLP and the patch embedding are large enough; three arrays
        # each: the parameter and its two moments.
        assert len(cut) == 3 * (2 * 5 + 1)
        for name in ("['block_0']['mlp_in']['kernel']", "['stem']['embedding']['kernel']"):
            owners = [path for path in cut if path.endswith(name)]
            assert len(owners) == 3
            assert sum(path.startswith("['params']") for path in owners) == 1
        whole, part = (sum(row[i] for row in where.values()) for i in (0, 1))
        # Two thirds of this model are sharded, so each device holds about half of the state.
        assert part < 0.55 * whole


@pytest.mark.slow
def test_fsdp_gives_the_losses_of_one_device(sharded):
    one = train(data=-1, fsdp=1)
    assert len(sharded["losses"]) == STEPS
    assert one["losses"][0] != one["losses"][-1]
    np.testing.assert_allclose(sharded["losses"], one["losses"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_weights_are_loaded_straight_into_their_shards(tmp_path):
    phase = phase_run("full", -1, 1)
    variables = phase.setup.initial_variables()
    save_native(tmp_path / "w.safetensors", variables, {})
    found = on_eight_devices(f"load_cut({str(tmp_path / 'w.safetensors')!r})")
    assert found["fingerprint"] == tree.fingerprint(variables["params"])
    whole, part = (sum(row[i] for row in found["shards"].values()) for i in (0, 1))
    assert part < 0.55 * whole


def test_a_probe_exchanges_the_gradient_of_its_head_and_no_more():
    found = on_eight_devices("collectives('linear_probe', data=8, fsdp=1)")
    exchanged = found["bytes"].pop("all-reduce")
    # Beside the gradient there are the means of loss and accuracy.
    assert found["trainable"] <= exchanged <= found["trainable"] + 64
    assert exchanged < found["model"] / 1000
    assert not any(found["bytes"].values())
