"""Small models, steps, batches and runs that the tests of training share."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax.config import default
from finetune_jax.data.augment import InputPipeline
from finetune_jax.models import MODELS, Entry, Inputs, build, initialise
from finetune_jax.models.vit import ViT
from finetune_jax.pretrained import open_weights
from finetune_jax.schemes import Phase, resolve
from finetune_jax.tasks import Classification
from finetune_jax.training import state as state_lib
from finetune_jax.training.optimizer import hyper_parameters, make_optimizer, make_rates
from finetune_jax.training.step import make_train_step

TASK = Classification(tuple("abcde"))

# Compilation takes most of the time of these tests, and it grows with the number of blocks.
MODELS["small_vit"] = Entry(
    "vit",
    functools.partial(ViT, width=96, depth=3, heads=3, patch=16),
    inputs=Inputs(32, crop=0),
    patch=16,
    dropout=True,
)


def setup(model_name, size, scheme, *, accumulate=1, batch_norm="frozen", **optimizer):
    """(model, abstract variables, plan, function that creates the state, train step)."""
    model = build(model_name, TASK.head_size, image_size=size)
    abstract = jax.eval_shape(lambda k: initialise(model, size, k), jax.random.key(0))
    plan = resolve(
        scheme, model.stages, abstract["params"], abstract["batch_stats"], batch_norm=batch_norm
    )
    config = default().optimizer
    config.update({"name": "adamw", **optimizer})
    tx = make_optimizer(config, make_rates(config, Phase(plan), 0, 10))
    step = make_train_step(
        plan.adapt(model),
        TASK,
        plan,
        tx,
        InputPipeline(scaled),
        accumulate=accumulate,
        ema_decay=config.ema_decay,
    )

    def create(variables):
        hyper = hyper_parameters(config, plan)
        return state_lib.create(variables, plan, tx, hyper, seed=0, ema=config.ema_decay > 0)

    return model, abstract, plan, create, step


def scaled(batch):
    """Images in [0, 1]."""
    return batch["image"].astype(jnp.float32) / 255


def batch_of(size, n=8, seed=0):
    """Random images and labels of `TASK`."""
    generator = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(generator.integers(0, 256, (n, size, size, 3), dtype=np.uint8)),
        "label": jnp.asarray(generator.integers(0, 5, n, dtype=np.int32)),
    }


def config_of(weights, scheme, **changes):
    """The config of a run of 6 steps on digits; `changes` have '__' for the dots of a key."""
    config = default()
    config.scheme = scheme
    config.model.name = "resnet8_cifar"
    config.pretrained.path = str(weights)
    config.pretrained.new_head = True
    config.data.train = "train[:32]"
    config.data.validation = "validation[:32]"
    config.data.test = "test[:32]"
    config.data.image_size = 16
    config.train.batch_size = 16
    config.train.steps = 6
    config.eval.batch_size = 16
    config.checkpoint.every_steps = 1
    config.log.every_steps = 1
    config.log.tensorboard = False
    for key, value in changes.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return config


def tensors(folder):
    """Tensors of the artifact of a run folder, by name."""
    with open_weights(folder / "artifact" / "model.safetensors") as file:
        return {name: file.read(name) for name in file.names()}


def same_end(one, other):
    """Asserts that two run folders end with the same bits and logged the same losses."""
    expected, found = tensors(one), tensors(other)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert np.array_equal(value, found[name]), name
    assert losses(one) == losses(other)


def losses(folder):
    """Training losses of a run folder, by step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["split"] == "train"]
