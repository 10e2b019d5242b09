"""LoRA, rsLoRA, DoRA, PiSSA and IA3 compute, differentiate and train as Hugging Face's `peft` does.

A small ViT and a small BERT of transformers, whose adapters have random values: logits, the
gradient of every adapter, and the adapters after three steps of SGD with momentum.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch", reason="not run: needs requirements-reference.txt")
pytest.importorskip("transformers", reason="not run: needs requirements-reference.txt")
peft = pytest.importorskip("peft", reason="not run: needs requirements-reference.txt")

import cases_text  # noqa: E402
import cases_vit  # noqa: E402
from harness import assert_within, delta, images, load_case, save_safetensors  # noqa: E402

from finetune_jax import tree  # noqa: E402
from finetune_jax.schemes import resolve  # noqa: E402

# Our modules and transformers'.
_MODULES = {
    "vit/transformers/classifier": {
        "attn/query": "vit.layers.{}.attention.q_proj",
        "attn/key": "vit.layers.{}.attention.k_proj",
        "attn/value": "vit.layers.{}.attention.v_proj",
        "mlp_out": "vit.layers.{}.mlp.fc2",
    },
    "text/transformers/bert": {
        "attn/query": "bert.encoder.layer.{}.attention.self.query",
        "attn/key": "bert.encoder.layer.{}.attention.self.key",
        "attn/value": "bert.encoder.layer.{}.attention.self.value",
        "mlp_out": "bert.encoder.layer.{}.output.dense",
    },
}
_CASES = {
    case.name: case for case in (*cases_vit.CASES, *cases_text.CASES) if case.name in _MODULES
}
_PROJECTIONS = ("attn/query", "attn/value")
_RANK, _ALPHA, _DEPTH = 3, 6, 3

# Our options, peft's options.
_LORA = {
    "lora": ({}, {}),
    "rslora": ({"rslora": True}, {"use_rslora": True}),
    "dora": ({"dora": True}, {"use_dora": True}),
    "pissa": ({"pissa": True}, {"init_lora_weights": "pissa"}),
}


def _wrapped(module, names, kind):
    """(our scheme, the module with peft's adapters)."""
    if kind == "ia3":
        ours = {*_PROJECTIONS, "attn/key", "mlp_out"} - {"attn/query"}
        config = peft.IA3Config(
            target_modules=[n.format(i) for o, n in names.items() if o in ours
                            for i in range(_DEPTH)],
            feedforward_modules=[names["mlp_out"].format(i) for i in range(_DEPTH)],
        )  # fmt: skip
        return "ia3", peft.get_peft_model(module, config)
    options, theirs = _LORA[kind]
    config = peft.LoraConfig(
        r=_RANK, lora_alpha=_ALPHA, lora_dropout=0.0, bias="none",
        target_modules=[names[o].format(i) for o in _PROJECTIONS for i in range(_DEPTH)],
        **theirs,
    )  # fmt: skip
    text = "".join(f", {k}={v}" for k, v in options.items())
    return f"lora(rank={_RANK}, alpha={_ALPHA}{text})", peft.get_peft_model(module, config)


def _pairs(wrapped, names, flat):
    """(our leaf path, their parameter, from theirs to ours) of every trainable parameter."""
    parameters = dict(wrapped.named_parameters())

    def theirs(name, end):
        return parameters[f"base_model.model.{name}.{end}"]

    for module, template in names.items():
        for i in range(_DEPTH):
            name, path = template.format(i), f"block_{i}/{module}"
            if f"{path}/ia3_scale" in flat:
                yield f"{path}/ia3_scale", theirs(name, "ia3_l.default"), np.ravel
            if f"{path}/lora_a" not in flat:
                continue
            yield f"{path}/lora_a", theirs(name, "lora_A.default.weight"), np.transpose
            yield f"{path}/lora_b", theirs(name, "lora_B.default.weight"), np.transpose
            if f"{path}/lora_shift" in flat:
                # They train the length, we train what is added to the length of the kernel.
                length = np.linalg.norm(np.asarray(flat[f"{path}/kernel"], np.float64), axis=0)
                magnitude = theirs(name, "lora_magnitude_vector.default.weight")
                yield f"{path}/lora_shift", magnitude, _minus(length)


def _minus(length):
    return lambda magnitude: magnitude - length


def _randomise(pairs):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for path, parameter, _ in pairs:
            noise = torch.randn(parameter.shape, generator=generator)
            around = path.endswith(("ia3_scale", "lora_shift"))
            parameter.copy_(parameter * (1 + 0.2 * noise) if around else 0.2 * noise)


def _values(pairs):
    return {p: turn(x.detach().numpy().astype(np.float64)) for p, x, turn in pairs}


def _fed(case, x):
    if case.feed:
        return case.feed(x)
    return {"pixel_values": torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))}


def _gradients(pairs, grads, step):
    """Comparisons of the gradients; the scale is a block's, as in `harness`."""
    found, scales = {}, {}
    for path, parameter, turn in pairs:
        # The gradient of the length is the gradient of what is added to the length.
        theirs = parameter.grad.numpy()
        theirs = theirs if path.endswith("lora_shift") else turn(theirs)
        found[path] = delta(f"gradient of {path}, step {step}", grads[path], theirs)
        block = path.split("/")[0]
        scales[block] = max(scales.get(block, 0.0), found[path].scale)
    return [
        dataclasses.replace(item, scale=scales[path.split("/")[0]]) for path, item in found.items()
    ]


@pytest.fixture(scope="module", params=_CASES)
def loaded(request):
    case = _CASES[request.param]
    module = case.build()
    with tempfile.TemporaryDirectory() as folder:
        path = (case.save or save_safetensors)(module, Path(folder))
        model, variables, _ = load_case(case, module, path)
    return case, model, variables


@pytest.mark.parametrize("kind", [*_LORA, "ia3"])
def test_adapters_are_those_of_peft(loaded, kind):
    case, model, variables = loaded
    names = _MODULES[case.name]
    x = case.inputs() if case.inputs else images(case)
    scheme, wrapped = _wrapped(case.build(), names, kind)
    wrapped.eval()
    plan = resolve(scheme, model.stages, variables["params"], {})
    start = tree.flatten(plan.add_deltas(variables["params"], jax.random.key(0)))
    adapted = plan.adapt(model)
    pairs = list(_pairs(wrapped, names, start))
    assert {path for path, _, _ in pairs} == set(plan.trainable)
    assert len(pairs) == sum(p.requires_grad for p in wrapped.parameters())

    found = []
    if kind == "pissa":  # The singular vectors' signs are free, their products are not.
        for module in _PROJECTIONS:
            a, b = (start[f"block_1/{module}/lora_{end}"] for end in "ab")
            values = _values(pairs)
            theirs = values[f"block_1/{module}/lora_a"] @ values[f"block_1/{module}/lora_b"]
            found.append(delta(f"start of {module}", a @ b, theirs))

    @jax.jit
    def apply(trainable):
        params = tree.unflatten({**start, **trainable})
        return adapted.apply({**variables, "params": params}, x)

    def loss(trainable):
        return jnp.sum(apply(trainable) ** 2) / 2

    _randomise(pairs)
    trainable = {p: jnp.asarray(v, jnp.float32) for p, v in _values(pairs).items()}
    fed = _fed(case, x)
    bare = model.apply(variables, x)
    optimizer = torch.optim.SGD([p for _, p, _ in pairs], lr=1e-3, momentum=0.9)
    tx = optax.sgd(1e-3, momentum=0.9)
    state, gradient = tx.init(trainable), jax.jit(jax.grad(loss))
    for step in range(3):
        optimizer.zero_grad()
        logits = wrapped(**fed).logits
        found.append(delta(f"logits before step {step}", apply(trainable), logits.detach()))
        (logits**2).sum().div(2).backward()
        grads = gradient(trainable)
        found += _gradients(pairs, grads, step)
        optimizer.step()
        updates, state = tx.update(grads, state)
        trainable = optax.apply_updates(trainable, updates)
    after = _values(pairs)
    found += [delta(f"{path} after 3 steps", trainable[path], after[path]) for path in after]
    found.append(delta("logits", apply(trainable), wrapped(**fed).logits.detach()))
    assert float(jnp.abs(apply(trainable) - bare).max()) > 1e-2
    assert_within(found)
