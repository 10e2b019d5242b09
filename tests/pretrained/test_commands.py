"""``python -m finetune_jax.pretrained`` and ``python -m finetune_jax.models``."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from resnet_files import akamaster, resnet20
from safetensors.numpy import load_file, save_file

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.models import MODELS, build, initial_variables
from finetune_jax.models.__main__ import describe
from finetune_jax.pretrained import Selection, load, open_weights, save_as
from finetune_jax.pretrained.formats.safetensors_file import write_safetensors
from finetune_jax.pretrained.inspection import fits, report


def test_inspect_names_the_model_that_a_file_holds(tmp_path):
    save_file(akamaster(resnet20()), tmp_path / "w.safetensors", {"trained_on": "digits"})
    with open_weights(tmp_path / "w.safetensors") as weights:
        best = fits(weights)[0]
        assert (best.name_map.origin, best.models) == ("akamaster", ("resnet20_cifar",))
        text = report(weights, limit=3)
    assert "fits: resnet_cifar, names of akamaster: model.name=resnet20_cifar" in text
    assert f"and {97 + 19 - 3} more" in text and "module.bn1.bias  " in text
    assert "metadata trained_on: digits" in text


def test_inspect_says_what_a_file_lacks_to_fit(tmp_path):
    tensors = akamaster(resnet20())
    tensors["module.extra.weight"] = np.ones(3, np.float32)
    save_file(tensors, tmp_path / "w.safetensors")
    with open_weights(tmp_path / "w.safetensors") as weights:
        text = report(weights)
    assert "does not fit: resnet_cifar, names of akamaster: 1 unknown names: 'module.extra" in text
    assert "\nfits" not in text
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "other.safetensors")
    with open_weights(tmp_path / "other.safetensors") as weights:
        assert "no model family knows" in report(weights)


def test_inspect_says_a_common_prefix_and_the_model_without_it(tmp_path):
    save_file(akamaster(resnet20(blocks=1), "model."), tmp_path / "w.safetensors")
    with open_weights(tmp_path / "w.safetensors") as weights:
        text = report(weights)
    assert "all 44 names begin with 'model.'; without it: resnet8_cifar\n" in text
    assert "fits: resnet_cifar, names of akamaster: model.name=resnet8_cifar" in text


def test_inspect_ranks_by_names_that_fill_a_leaf(tmp_path):
    # Each of MobileNetV2's name maps ignores the counters, and ResNet-8's knows a `dense` layer.
    torch = {f"blk.{i}.norm.{n}": np.ones(4, np.float32) for i in range(9) for n in "ab"}
    torch |= {f"blk.{i}.norm.num_batches_tracked": np.array([1]) for i in range(9)}
    save_file(torch, tmp_path / "w.safetensors")
    with open_weights(tmp_path / "w.safetensors") as weights:
        assert fits(weights) == [] and "no model family knows" in report(weights)
    tensors = akamaster(resnet20(blocks=1), "net.")
    tensors |= {f"head2.{n}": np.ones(3, np.float32) for n in ("weight", "bias")}
    tensors |= {f"ssl.{i}.num_batches_tracked": np.array([1]) for i in range(200)}
    save_file(tensors, tmp_path / "w.safetensors")
    with open_weights(tmp_path / "w.safetensors") as weights:
        best = fits(weights)[0]
        text = report(weights)
    assert (best.name_map.origin, best.models) == ("akamaster", ("resnet8_cifar",))
    assert best.unknown == ("head2.bias", "head2.weight") and len(best.known) == 37
    assert "37 names are those of model.name=resnet8_cifar (pretrained.ignore drops" in text
    assert "mobilenet" not in text


def test_inspect_shows_one_of_several_sets_and_one_line_for_an_optimizer(tmp_path):
    trained = akamaster(resnet20(blocks=1), "")
    tensors = {
        f"{role}.{n}": a.copy() for role in ("student", "teacher") for n, a in trained.items()
    }
    tensors |= {f"{n}.exp_avg": np.copy(a)[None] for n, a in trained.items()}
    save_file(tensors, tmp_path / "w.safetensors")
    with open_weights(tmp_path / "w.safetensors") as weights:
        text = report(weights)
        student = report(weights, selection=Selection(weights="student"))
        with pytest.raises(UserError, match="has no such weights; it has .*student.*teacher"):
            report(weights, selection=Selection(weights="ema"))
    assert "takes the teacher weights (names 'teacher.'…); the file also has student" in text
    assert "all 44 names begin with 'teacher.'; without it: resnet8_cifar" in text
    assert "all 44 names begin with 'student.'; without it: resnet8_cifar" in student
    assert "other entries, not read: state of an optimizer (44 entries)\n" in text
    assert "exp_avg" not in text


def test_inspect_shows_what_a_load_would_refuse(tmp_path):
    tensors = akamaster(resnet20(blocks=1), "a.") | akamaster(resnet20(seed=1, blocks=1), "b.")
    save_file(tensors, tmp_path / "w.safetensors")
    with open_weights(tmp_path / "w.safetensors") as weights:
        text = report(weights)
        chosen = report(weights, selection=Selection(prefix="b."))
    assert "2 sets of tensors fit the model, behind 'a.' (37), 'b.' (37)" in text
    assert "44 of 88 names begin with 'b.'; without it: resnet8_cifar\nfits: " in chosen


def test_a_model_goes_out_under_other_names_and_comes_back(tmp_path):
    trained = resnet20(seed=1)
    save_as(tmp_path / "out.safetensors", trained, "resnet_cifar", "akamaster")
    written = load_file(tmp_path / "out.safetensors")
    expected = akamaster(trained, prefix="")
    assert written.keys() == {n for n in expected if not n.endswith("num_batches_tracked")}
    for name, array in written.items():
        np.testing.assert_array_equal(array, expected[name])
    back, _ = load(tmp_path / "out.safetensors", "resnet_cifar", resnet20(seed=2))
    assert tree.fingerprint(back) == tree.fingerprint(trained)


def test_an_origin_that_cannot_express_a_leaf_is_refused(tmp_path):
    trained = resnet20()
    trained["params"]["head"]["lora_a"] = np.ones((64, 2), np.float32)
    with pytest.raises(UserError, match="params/head/lora_a has no name in this origin"):
        save_as(tmp_path / "out.safetensors", trained, "resnet_cifar", "akamaster")
    with pytest.raises(UserError, match="no origin 'akamster'. Did you mean 'akamaster'"):
        save_as(tmp_path / "out.safetensors", trained, "resnet_cifar", "akamster")
    assert not list(tmp_path.iterdir())


def test_the_registry_is_described_without_a_run():
    card = describe("resnet20_cifar")
    assert card["parameters"] == 269_722
    # 41 M multiply-adds, two operations each, less what the borders save.
    assert 70e6 < card["flops"] < 84e6
    assert card["licence"] == "BSD-2-Clause" and card["input"] == 32


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_tree_with_its_stages(name):
    model = build(name, 10)
    abstract = initial_variables(model, MODELS[name].image_size, stages=())
    assert sorted(abstract["params"]) == sorted(model.stages)
    assert model.stages[-1] == "head"
    assert all(leaf in tree.flatten(abstract["params"]) for leaf in model.resizable)


def test_a_wrong_command_names_the_right_one():
    done = subprocess.run(
        [sys.executable, "-m", "finetune_jax.pretrained", "inspct", "x"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Did you mean 'inspect'" in done.stderr


def test_a_wrong_file_to_write_says_what_is_expected(tmp_path):
    with pytest.raises(UserError, match="expected m.safetensors, found '.pth'"):
        write_safetensors(tmp_path / "m.pth", {}, {})
    with pytest.raises(UserError, match=f"name a file in it, such as {tmp_path}/model.safetens"):
        write_safetensors(tmp_path, {}, {})
    with pytest.raises(UserError, match="the folder .*/none does not exist; create it first"):
        write_safetensors(tmp_path / "none" / "m.safetensors", {}, {})
