"""Small models, schemes with their parameter counts, and a short training run, for these tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax.config import default
from finetune_jax.data.augment import InputPipeline
from finetune_jax.models import initial_variables
from finetune_jax.models.resnet_cifar import ResNetCifar
from finetune_jax.models.vit import ViT
from finetune_jax.schemes import Phase, resolve
from finetune_jax.tasks import Classification
from finetune_jax.training import state as state_lib
from finetune_jax.training.optimizer import hyper_parameters, make_optimizer, make_rates
from finetune_jax.training.step import make_train_step

TASK = Classification(tuple("abcde"))
SIZE = 32
DEPTH, WIDTH, RANK = 2, 32, 4

VIT = {
    # scheme: trainable parameters beside the head
    "lora(rank=4)": DEPTH * 2 * RANK * 2 * WIDTH,
    "lora(rank=4, rslora=True, alpha=8)": DEPTH * 2 * RANK * 2 * WIDTH,
    "lora(rank=4, plus=16)": DEPTH * 2 * RANK * 2 * WIDTH,
    "lora(rank=4, dora=True)": DEPTH * 2 * (RANK * 2 * WIDTH + WIDTH),
    "lora(rank=4, pissa=True)": DEPTH * 2 * RANK * 2 * WIDTH,
    "lora(rank=4, dora=True, pissa=True)": DEPTH * 2 * (RANK * 2 * WIDTH + WIDTH),
    "lora(rank=4, on='mlp_in')": DEPTH * RANK * 5 * WIDTH,
    "ia3": DEPTH * (2 * WIDTH + 4 * WIDTH),
    "ssf": 2 * (WIDTH + DEPTH * (4 + 4 + 1 + 2) * WIDTH + WIDTH),
    "houlsby(size=8)": DEPTH * 2 * (2 * WIDTH * 8 + 8 + WIDTH) + 2 * WIDTH * (2 * DEPTH + 1),
    "pfeiffer(size=8)": DEPTH * (2 * WIDTH * 8 + 8 + WIDTH),
    "adaptformer(size=8)": DEPTH * (2 * WIDTH * 8 + 8 + WIDTH),
    "vpt(tokens=3)": 3 * WIDTH,
    "vpt(tokens=3, deep=True)": DEPTH * 3 * WIDTH,
    "random_mask('norm_only', seed=1)": 2 * WIDTH * (2 * DEPTH + 1),
}
CONVS = [(3, 16), (16, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64)]
RESNET = {
    "lora(rank=2)": sum(9 * a * 2 + 2 * b for a, b in CONVS),
    "ssf": 2 * (16 * 3 + 32 * 2 + 64 * 2),
    "random_mask('norm_only')": 2 * (16 * 3 + 32 * 2 + 64 * 2),
}
CASES = [("vit", s) for s in VIT] + [("resnet", s) for s in RESNET]
MERGED = ("lora", "ia3", "ssf", "random_mask")


def vit(**options):
    return ViT(width=WIDTH, depth=DEPTH, heads=2, patch=16, num_classes=5, **options)


def head_size(name):
    return (64 if name == "resnet" else WIDTH) * 5 + 5


def with_head(name):
    """(model, its variables), with a random head: a head of zeros would hide every difference."""
    small = {
        "vit": vit,
        "vit_wide": lambda: ViT(width=192, depth=3, heads=3, patch=16, num_classes=5),
        "resnet": lambda: ResNetCifar(depth=8, num_classes=5),
    }
    model = small[name]()
    variables = initial_variables(model, SIZE)
    shape = variables["params"]["head"]["kernel"].shape
    kernel = 0.1 * jax.random.normal(jax.random.key(1), shape)
    variables["params"]["head"] = {**variables["params"]["head"], "kernel": kernel}
    return model, variables


def adapted(base, name, scheme):
    model, variables = base[name]
    plan = resolve(scheme, model.stages, variables["params"], variables["batch_stats"])
    params = plan.add_deltas(variables["params"], jax.random.key(2))
    return model, plan, plan.adapt(model), {**variables, "params": params}


def images(n=4):
    return jax.random.normal(jax.random.key(3), (n, SIZE, SIZE, 3))


def scaled(batch):
    return batch["image"].astype(jnp.float32) / 255


def train(plan, model, variables, steps=3, learning_rate=0.05):
    config = default().optimizer
    config.learning_rate = learning_rate
    config.schedule = "constant"
    tx = make_optimizer(config, make_rates(config, Phase(plan), 0, 10))
    step = jax.jit(make_train_step(model, TASK, plan, tx, InputPipeline(scaled)))
    state, frozen = state_lib.create(
        variables, plan, tx, hyper_parameters(config, plan), seed=0, ema=False
    )
    generator = np.random.default_rng(0)
    for _ in range(steps):
        batch = {
            "image": jnp.asarray(generator.integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)),
            "label": jnp.asarray(generator.integers(0, 5, 8, dtype=np.int32)),
        }
        state, _ = step(state, frozen, batch)
    return state_lib.variables(state, frozen)
