"""Names and shapes of the convolutional families at their full sizes, without values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import pytest

torch = pytest.importorskip("torch", reason="not run: needs requirements-reference.txt")
timm = pytest.importorskip("timm", reason="not run: needs requirements-reference.txt")
torchvision = pytest.importorskip("torchvision", reason="not run: needs requirements-reference.txt")
transformers = pytest.importorskip("transformers", reason="not run: needs requirements-reference.txt")

from finetune_jax import tree  # noqa: E402
from finetune_jax.models import MODELS, build, initialise  # noqa: E402
from finetune_jax.pretrained.names import closest_map  # noqa: E402

Build = Callable[[], Any]


def _timm(name: str) -> Build:
    return lambda: timm.create_model(name)


def _torchvision(name: str) -> Build:
    return lambda: torchvision.models.get_model(name)


def _resnet(depth: int) -> Build:
    from finetune_jax.models.resnet import DEPTHS

    depths, bottleneck = DEPTHS[depth]
    config = {} if bottleneck else {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}
    return lambda: transformers.ResNetForImageClassification(
        transformers.ResNetConfig(depths=list(depths), num_labels=1000, **config)
    )


CASES: list[tuple[str, str, Build]] = [
    *((f"resnet{d}", "torchvision", _torchvision(f"resnet{d}")) for d in (18, 34, 50, 101, 152)),
    *((f"resnet{d}", "torchvision", _timm(f"resnet{d}")) for d in (18, 34, 50, 101, 152)),
    *((f"resnet{d}", "transformers", _resnet(d)) for d in (18, 34, 50, 101, 152)),
]


@pytest.mark.parametrize(
    ("name", "origin", "reference"), CASES, ids=[f"{n}-{o}-{i}" for i, (n, o, _) in enumerate(CASES)]
)
def test_every_tensor_has_its_leaf_and_every_leaf_its_tensor(name, origin, reference):
    with torch.device("meta"):
        state = {n: tuple(t.shape) for n, t in reference().state_dict().items()}
    entry = MODELS[name]
    model = build(name, entry.classes or 1000, image_size=entry.image_size)
    ours = jax.eval_shape(
        lambda key: initialise(model, entry.image_size, key), jax.random.key(0)
    )
    expected = {leaf: tuple(x.shape) for leaf, x in tree.flatten(ours).items()}
    names, unknown = closest_map(entry.family, state, expected)
    assert names.origin == origin
    assert not unknown
    found: dict[str, tuple[int, ...]] = {}
    for source, shape in state.items():
        if names.ignored(source) is None:
            for target in names.targets(source):
                assert target.leaf not in found, source
                found[target.leaf] = target.shape(shape)
    assert found == expected
