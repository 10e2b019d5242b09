import jax
import numpy as np
import pytest

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.models import initialise
from finetune_jax.models.vit import ViT
from finetune_jax.pretrained import load, map_of, open_weights
from finetune_jax.pretrained.inspection import report
from finetune_jax.pretrained.maps import maps_of
from finetune_jax.pretrained.stacked import unstack

MODEL = ViT(width=16, depth=3, heads=2, patch=8, num_classes=5, pooling="map")
LAYERS = "params/Transformer/encoderblock"


@pytest.fixture(scope="module")
def abstract():
    return jax.eval_shape(lambda key: initialise(MODEL, 16, key), jax.random.key(0))


@pytest.fixture
def drawn(abstract):
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.float32(generator.normal(size=x.shape)), abstract)


@pytest.fixture
def scanned(tmp_path, drawn):
    """(path, tensors) of a file with one tensor for all layers."""
    tensors = map_of("vit", "big_vision").write(tree.flatten(drawn), MODEL.sizes)
    stacks = {}
    for name in [n for n in tensors if n.startswith(f"{LAYERS}_")]:
        number, rest = name.removeprefix(f"{LAYERS}_").split("/", 1)
        stacks.setdefault(f"{LAYERS}/{rest}", {})[int(number)] = tensors.pop(name)
    tensors |= {n: np.stack([rows[i] for i in range(3)]) for n, rows in stacks.items()}
    np.savez(tmp_path / "w.npz", **tensors)
    return tmp_path / "w.npz", tensors


def test_layers_in_one_tensor_are_loaded_one_by_one(scanned, drawn, abstract):
    path, tensors = scanned
    variables, manifest = load(path, "vit", abstract, MODEL)
    assert tree.fingerprint(variables) == tree.fingerprint(drawn)
    assert manifest.origin == "big_vision"
    sources = {row.source_name for row in manifest.rows}
    assert f"{LAYERS}/LayerNorm_0/scale[2]" in sources
    assert {name.split("[")[0] for name in sources} == set(tensors)


def test_a_model_of_fewer_layers_has_no_place_for_the_rest(scanned, abstract):
    params = {s: v for s, v in abstract["params"].items() if s != "block_2"}
    with pytest.raises(
        UserError, match=r"LayerNorm_0/scale\[2\]' .* which the model does not have"
    ):
        load(scanned[0], "vit", {**abstract, "params": params}, MODEL)


def test_rows_are_read_in_any_order(scanned):
    path, tensors = scanned
    with unstack(open_weights(path), maps_of("vit")) as weights:
        for i in (2, 0, 1):
            for kind in ("scale", "bias"):
                name = f"{LAYERS}/LayerNorm_1/{kind}"
                np.testing.assert_array_equal(weights.read(f"{name}[{i}]"), tensors[name][i])
        np.testing.assert_array_equal(weights.read("params/head/bias"), tensors["params/head/bias"])


def test_other_files_stay_as_they_are(tmp_path, drawn):
    np.savez(tmp_path / "w.npz", **map_of("vit", "timm").write(tree.flatten(drawn), MODEL.sizes))
    with open_weights(tmp_path / "w.npz") as weights:
        assert unstack(weights, maps_of("vit")) is weights


def test_inspect_sees_the_layers(scanned):
    with open_weights(scanned[0]) as weights:
        assert "names of big_vision" in report(weights)
