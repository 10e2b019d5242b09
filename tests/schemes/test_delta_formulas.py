"""Forward passes with deltas against the papers' formulas, written out with plain `jax.numpy`.

`reference` is a small ViT without Flax; each test puts the formula of one delta into it. All
leaves, those of the deltas included, are random.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune_jax import tree
from finetune_jax.deltas import LoRA, Sparse
from finetune_jax.models import initialise
from finetune_jax.models.resnet_cifar import ResNetCifar
from finetune_jax.models.vit import ViT
from finetune_jax.schemes import resolve

WIDTH, DEPTH, HEADS, PATCH, SIZE = 8, 2, 2, 4, 12
MODEL = ViT(width=WIDTH, depth=DEPTH, heads=HEADS, patch=PATCH, num_classes=5, registers=1)
IMAGES = np.random.default_rng(5).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)


def drawn(shapes, seed=0):
    generator = np.random.default_rng(seed)

    def one(path, leaf):
        noise = generator.normal(size=leaf.shape).astype(np.float32)
        if len(leaf.shape) < 2:
            return jnp.asarray(1 + 0.3 * noise if path.endswith("scale") else 0.3 * noise)
        return jnp.asarray(noise / math.sqrt(math.prod(leaf.shape[:-1])))

    return {path: one(path, leaf) for path, leaf in shapes.items()}


BASE = drawn(
    tree.flatten(jax.eval_shape(lambda k: initialise(MODEL, SIZE, k), jax.random.key(0))["params"])
)


def dense(p, name, x):
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def layer_norm(p, name, x):
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return normal * p[f"{name}/scale"] + p[f"{name}/bias"]


def attention(p, block, x, dense):
    def heads(name):
        y = dense(p, f"{block}/attn/{name}", x)
        return y.reshape(*y.shape[:2], HEADS, WIDTH // HEADS)

    scores = jnp.einsum("bqhd,bkhd->bhqk", heads("query"), heads("key"))
    weights = jax.nn.softmax(scores / math.sqrt(WIDTH // HEADS), axis=-1)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, heads("value"))
    return dense(p, f"{block}/attn/out", mixed.reshape(x.shape))


def gelu(x):
    return x * 0.5 * (1 + jax.scipy.special.erf(x / math.sqrt(2)))


def keep(p, name, x):
    return x


def reference(
    p, *, dense=dense, layer_norm=layer_norm, embedded=keep, after_attention=keep,
    after_mlp=keep, beside_mlp=lambda p, block, x: 0.0, enter=keep, leave=keep,
):  # fmt: skip
    """Logits of the ViT with leaves `p` on `IMAGES`; the options are the places for deltas."""
    side = SIZE // PATCH
    x = IMAGES.reshape(-1, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    kernel = p["stem/embedding/kernel"].reshape(-1, WIDTH)
    x = x.reshape(-1, side**2, PATCH * PATCH * 3) @ kernel + p["stem/embedding/bias"]
    x = embedded(p, "stem/embedding", x)
    prefix = [p["stem/class_token"], p["stem/register_tokens"]]
    prefix = [jnp.broadcast_to(t, (len(x), *t.shape[1:])) for t in prefix]
    x = jnp.concatenate([*prefix, x], axis=1) + p["stem/position_embedding"]
    for block in (f"block_{i}" for i in range(DEPTH)):
        x = enter(p, block, x)
        y = attention(p, block, layer_norm(p, f"{block}/norm1", x), dense)
        x = x + after_attention(p, f"{block}/attn", y)
        y = gelu(dense(p, f"{block}/mlp_in", layer_norm(p, f"{block}/norm2", x)))
        y = dense(p, f"{block}/mlp_out", y)
        x = x + after_mlp(p, f"{block}/mlp_out", y) + beside_mlp(p, block, x)
        x = leave(p, block, x)
    x = layer_norm(p, "norm", x)[:, 0]
    return x @ p["head/kernel"] + p["head/bias"]


def with_deltas(scheme, at_start=False):
    """(function of all leaves to logits, all leaves, the plan); delta leaves random or at start."""
    plan = resolve(scheme, MODEL.stages, tree.unflatten(BASE), {})
    leaves = tree.flatten(plan.add_deltas(tree.unflatten(BASE), jax.random.key(1)))
    if not at_start:
        leaves |= drawn({p: x for p, x in leaves.items() if p not in BASE}, seed=7)
    model = plan.adapt(MODEL)
    return lambda p: model.apply({"params": tree.unflatten(p)}, IMAGES), leaves, plan


def check(scheme, **places):
    apply, leaves, plan = with_deltas(scheme)
    found = apply(leaves)
    np.testing.assert_allclose(found, reference(leaves, **places), atol=2e-5)
    assert float(jnp.abs(found - reference(leaves)).max()) > 1e-2
    return apply, leaves, plan


def low_rank(scale):
    def dense_with(p, name, x):
        y = dense(p, name, x)
        if f"{name}/lora_a" in p:
            y = y + scale * (x @ p[f"{name}/lora_a"]) @ p[f"{name}/lora_b"]
        return y

    return dense_with


def test_the_reference_is_the_model():
    found = MODEL.apply({"params": tree.unflatten(BASE)}, IMAGES)
    np.testing.assert_allclose(found, reference(BASE), atol=2e-5)


@pytest.mark.parametrize(
    ("scheme", "scale"),
    [
        ("lora(rank=2)", 1.0),
        ("lora(rank=2, alpha=6)", 3.0),
        ("lora(rank=4, alpha=6, rslora=True)", 3.0),
        ("lora(rank=4, rslora=True)", 2.0),
        ("lora(rank=2, plus=16)", 1.0),
    ],
)
def test_lora(scheme, scale):
    _, leaves, _ = check(scheme, dense=low_rank(scale))
    modules = {p.rsplit("/", 1)[0] for p in leaves if p.endswith("lora_a")}
    assert modules == {f"block_{i}/attn/{m}" for i in range(DEPTH) for m in ("query", "value")}


def test_lora_starts_at_kaiming_uniform_a_and_zero_b():
    _, leaves, _ = with_deltas("lora(rank=8, on='mlp_out')", at_start=True)
    a = np.concatenate([leaves[f"block_{i}/mlp_out/lora_a"].ravel() for i in range(DEPTH)])
    bound = 1 / math.sqrt(4 * WIDTH)
    assert 0.9 * bound < a.max() <= bound and -bound <= a.min() < -0.9 * bound
    assert abs(a.std() / (bound / math.sqrt(3)) - 1) < 0.1
    assert not np.array_equal(*np.split(a, 2))
    assert all(not x.any() for p, x in leaves.items() if p.endswith("lora_b"))


def test_b_of_lora_plus_learns_at_the_ratio_and_a_at_the_rate_of_the_term():
    plan = resolve("lora(rank=2, plus=16, lr=0.5)", MODEL.stages, tree.unflatten(BASE), {})
    rates = {(leaf.path[-6:], leaf.lr) for leaf in plan.leaves if leaf.trains}
    assert rates == {("lora_a", 0.5), ("lora_b", 8.0)}


def test_pissa():
    """Start: s A B is the best approximation of rank r; the kernel W + s (A B - A0 B0)."""
    apply, start, _ = with_deltas("lora(rank=2, alpha=4, pissa=True)", at_start=True)
    np.testing.assert_allclose(apply(start), reference(start), atol=2e-5)
    for name in ("block_0/attn/query", "block_1/attn/value"):
        u, s, v = np.linalg.svd(BASE[f"{name}/kernel"])
        best = (u[:, :2] * s[:2]) @ v[:2]
        product = 2 * start[f"{name}/lora_a"] @ start[f"{name}/lora_b"]
        np.testing.assert_allclose(product, best, atol=1e-5)
        # The singular values are shared evenly by A and B.
        lengths = [np.linalg.norm(start[f"{name}/lora_a"], axis=0),
                   np.linalg.norm(start[f"{name}/lora_b"], axis=1)]  # fmt: skip
        np.testing.assert_allclose(lengths, [np.sqrt(s[:2] / 2)] * 2, rtol=1e-4)
    np.testing.assert_array_equal(start["block_0/attn/query/kernel"],
                                  BASE["block_0/attn/query/kernel"])  # fmt: skip

    def dense_with(p, name, x):
        kernel, bias = p[f"{name}/kernel"], p[f"{name}/bias"]
        if f"{name}/lora_a" in p:
            kernel = kernel - 2 * p[f"{name}/lora_a0"] @ p[f"{name}/lora_b0"]
            kernel = kernel + 2 * p[f"{name}/lora_a"] @ p[f"{name}/lora_b"]
        return x @ kernel + bias

    check("lora(rank=2, alpha=4, pissa=True)", dense=dense_with)


@pytest.mark.slow
@pytest.mark.parametrize("pissa", [False, True])
def test_dora_and_its_gradient(pissa):
    """(‖W‖ + shift) V / ‖V‖ by columns, V = W + s A B; ‖V‖ is a constant of the gradient."""

    def dense_with(p, name, x):
        kernel, bias = p[f"{name}/kernel"], p[f"{name}/bias"]
        if f"{name}/lora_a" in p:
            product = p[f"{name}/lora_a"] @ p[f"{name}/lora_b"]
            if pissa:
                product = product - p[f"{name}/lora_a0"] @ p[f"{name}/lora_b0"]
            moved = kernel + 1.5 * product
            norm = jax.lax.stop_gradient(jnp.sqrt((moved**2).sum(0)))
            length = jnp.sqrt((kernel**2).sum(0)) + p[f"{name}/lora_shift"]
            kernel = moved * (length / norm)
        return x @ kernel + bias

    apply, leaves, plan = check(f"lora(rank=2, alpha=3, dora=True, pissa={pissa})",
                                dense=dense_with)  # fmt: skip
    weights = np.random.default_rng(2).normal(size=(2, 5))
    trainable = {p: leaves[p] for p in plan.trainable}
    found, expected = (
        jax.grad(lambda t, f=f: jnp.sum(weights * f({**leaves, **t})))(trainable)
        for f in (apply, lambda p: reference(p, dense=dense_with))
    )
    assert {p.rsplit("_", 1)[1] for p in trainable} == {"a", "b", "shift"}
    for path in trainable:
        np.testing.assert_allclose(found[path], expected[path], atol=1e-4)
        assert float(jnp.abs(found[path]).max()) > 1e-3


def test_ia3():
    """l times keys and values, bias included, and l times the input of the last dense layer."""

    def dense_with(p, name, x):
        if name.endswith("mlp_out"):
            return dense(p, name, x * p[f"{name}/ia3_scale"])
        if name.endswith(("key", "value")):
            return dense(p, name, x) * p[f"{name}/ia3_scale"]
        return dense(p, name, x)

    check("ia3", dense=dense_with)
    _, start, plan = with_deltas("ia3", at_start=True)
    assert all((start[p] == 1).all() for p in plan.trainable)


def test_ssf():
    """y * gamma + beta after each dense layer, norm and the patch embedding, and not the head."""

    def shifted(p, name, y):
        return y * p[f"{name}/ssf_scale"] + p[f"{name}/ssf_shift"]

    check(
        "ssf",
        dense=lambda p, name, x: shifted(p, name, dense(p, name, x)),
        layer_norm=lambda p, name, x: shifted(p, name, layer_norm(p, name, x)),
        embedded=shifted,
    )


def test_ssf_starts_around_the_identity():
    _, start, _ = with_deltas("ssf(std=0.02)", at_start=True)
    scales, shifts = (
        np.concatenate([x.ravel() for p, x in start.items() if p.endswith(f"ssf_{end}")])
        for end in ("scale", "shift")
    )
    assert abs(scales.mean() - 1) < 0.01 and abs(scales.std() / 0.02 - 1) < 0.15
    assert abs(shifts.mean()) < 0.01 and abs(shifts.std() / 0.02 - 1) < 0.15
    assert not np.allclose(scales - 1, shifts)


def bottleneck(p, name, x, act, kind="adapter"):
    down = x @ p[f"{name}/{kind}_down/kernel"] + p[f"{name}/{kind}_down/bias"]
    return act(down) @ p[f"{name}/{kind}_up/kernel"] + p[f"{name}/{kind}_up/bias"]


def relu(x):
    return jnp.where(x > 0, x, 0.0)


def test_houlsby():
    """After attention and after the feed-forward, both before the residual sum, with GELU."""

    def after(p, name, y):
        return y + bottleneck(p, name, y, gelu)

    _, _, plan = check("houlsby(size=3)", after_attention=after, after_mlp=after)
    norms = {p for p in plan.trainable if "adapter" not in p}
    assert norms == {p for p in BASE if "norm" in p}


def test_pfeiffer():
    """After the block's last residual sum, with ReLU."""
    check("pfeiffer(size=3)", leave=lambda p, name, x: x + bottleneck(p, name, x, relu))


def test_adaptformer():
    """scale * up(relu(down(x))) of the input of the second norm, added to the feed-forward."""

    def beside(scale):
        return lambda p, block, x: scale * bottleneck(p, f"{block}/norm2", x, relu, "adaptformer")

    check("adaptformer(size=3)", beside_mlp=beside(0.1))
    check("adaptformer(size=3, scale=0.5)", beside_mlp=beside(0.5))


def test_a_bottleneck_starts_at_uniform_down_and_zero_up():
    down = "adapter_down"
    _, start, _ = with_deltas("pfeiffer(size=16)", at_start=True)
    new = {p: np.asarray(x) for p, x in start.items() if p not in BASE}
    kernels = [x for p, x in new.items() if p.endswith(f"{down}/kernel")]
    assert len(kernels) == DEPTH and not np.array_equal(*kernels)
    bound = 1 / math.sqrt(WIDTH)
    for kernel in kernels:
        assert 0.9 * bound < kernel.max() <= bound and -bound <= kernel.min() < -0.9 * bound
    assert all(not x.any() for p, x in new.items() if not p.endswith(f"{down}/kernel"))


# Before the patches are one class token and one register.
BEFORE = 2


def inserted(p, block, x):
    prompts = p[f"{block}/prompt_tokens"]
    prompts = jnp.broadcast_to(prompts, (len(x), *prompts.shape))
    return jnp.concatenate([x[:, :BEFORE], prompts, x[:, BEFORE:]], axis=1)


def removed(x, tokens):
    return jnp.concatenate([x[:, :BEFORE], x[:, BEFORE + tokens :]], axis=1)


def test_shallow_prompts():
    """Inserted before the first block only, and seen by every block."""
    check(
        "vpt(tokens=3)",
        enter=lambda p, block, x: inserted(p, block, x) if block == "block_0" else x,
    )


def test_deep_prompts():
    """Each block sees prompts of its own; the outputs of a block's prompts are dropped."""
    check("vpt(tokens=3, deep=True)", enter=inserted, leave=lambda p, block, x: removed(x, 3))


def test_prompts_start_uniform():
    _, start, _ = with_deltas("vpt(tokens=40, deep=True)", at_start=True)
    first, second = (np.asarray(start[f"block_{i}/prompt_tokens"]) for i in range(2))
    assert not np.array_equal(first, second)
    bound = math.sqrt(6 / (3 * PATCH * PATCH + WIDTH))
    for tokens in (first, second):
        assert 0.95 * bound < tokens.max() <= bound and -bound <= tokens.min() < -0.95 * bound


def test_lora_of_a_convolution_with_strides():
    """W + s sum_r A[..., r] B[r, :]: the same window, strides and padding as the kernel's."""
    model = ResNetCifar(depth=8, num_classes=5)
    shapes = jax.eval_shape(lambda k: initialise(model, 16, k), jax.random.key(0))
    base = drawn(tree.flatten(shapes["params"]))
    statistics = jax.tree.map(lambda x: jnp.full(x.shape, 0.5), shapes["batch_stats"])
    plan = resolve("lora(rank=2, alpha=3)", model.stages, tree.unflatten(base), statistics)
    leaves = tree.flatten(plan.add_deltas(tree.unflatten(base), jax.random.key(1)))
    leaves |= drawn({p: x for p, x in leaves.items() if p not in base}, seed=7)
    merged = dict(base)
    for path in [p for p in leaves if p.endswith("/lora_a")]:
        module = path.rsplit("/", 1)[0]
        product = np.einsum("hwir,ro->hwio", leaves[path], leaves[f"{module}/lora_b"])
        merged[f"{module}/kernel"] = base[f"{module}/kernel"] + 1.5 * product
    assert sum(merged[p] is not base[p] for p in base) == 7  # all convolutions
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    found, expected, bare = (
        m.apply({"params": tree.unflatten(p), "batch_stats": statistics}, images)
        for m, p in ((plan.adapt(model), leaves), (model, merged), (model, base))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert float(jnp.abs(found - bare).max()) > 1e-2


def test_a_of_a_convolution_starts_by_the_size_of_its_window():
    """Kaiming: the fan-in of a 3 x 3 convolution counts the nine places of the window."""
    kernel = np.zeros((3, 3, 64, 8), np.float32)
    delta = LoRA("conv", 4, 4.0, False, False, False, 1.0)
    values = delta.initial(jax.random.key(0), {"conv/kernel": kernel})
    bound = 1 / math.sqrt(9 * 64)
    assert 0.95 * bound < np.abs(values["conv/lora_a"]).max() <= bound


@pytest.mark.parametrize("pissa", [False, True])
def test_a_merged_dora_kernel_has_the_trained_lengths(pissa):
    """Every column of the merged kernel points along W + s A B and has the trained length."""
    scheme = f"lora(rank=2, alpha=3, dora=True, pissa={pissa}, on='query')"
    _, leaves, plan = with_deltas(scheme)
    for delta in plan.deltas:
        kernel = BASE[f"{delta.module}/kernel"]
        a, b = leaves[f"{delta.module}/lora_a"], leaves[f"{delta.module}/lora_b"]
        direction = kernel + 1.5 * (a @ b)
        if pissa:
            start = [leaves[f"{delta.module}/lora_{name}"] for name in ("a0", "b0")]
            direction = direction - 1.5 * (start[0] @ start[1])
        length = np.linalg.norm(kernel, axis=0) + leaves[f"{delta.module}/lora_shift"]
        expected = direction / np.linalg.norm(direction, axis=0) * length
        merged = delta.merge(leaves)[f"{delta.module}/kernel"]
        np.testing.assert_allclose(merged, expected, rtol=1e-4, atol=1e-5)


def test_places_of_a_sparse_delta_depend_on_seed_and_leaf():
    base = {f"{module}/kernel": np.zeros((20, 30), np.float32) for module in ("one", "two")}

    def places(module, seed):
        values = Sparse(module, "kernel", 50, seed).initial(jax.random.key(0), base)
        return values[f"{module}/sparse_kernel_places"].tolist()

    assert places("one", 3) == places("one", 3)
    assert places("one", 3) != places("one", 4)
    assert places("one", 3) != places("two", 3)
    assert len({*places("one", 3)}) == 50
