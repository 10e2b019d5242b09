"""Wrappers around weights, files with several sets of weights, and tensors to drop."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest
from format_samples import write_msgpack
from resnet_files import akamaster, resnet20
from safetensors.numpy import save_file
from torch_writer import Storage, Tensor, tensor, write_zip

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.pretrained import Selection, load, open_weights
from finetune_jax.pretrained.maps import maps_of
from finetune_jax.pretrained.selection import choose_tensors, ignoring


@pytest.fixture(scope="module")
def trained():
    return resnet20(seed=1, blocks=1)


@pytest.fixture(scope="module")
def other():
    return resnet20(seed=5, blocks=1)


def tensors_of(arrays, start=0):
    """Torch tensors with storages of their own."""
    return {name: tensor(str(start + i), a) for i, (name, a) in enumerate(arrays.items())}


def loaded(path, **settings):
    selection = Selection(
        **{k: settings.pop(k) for k in ("weights", "prefix", "ignore") & settings.keys()}
    )
    return load(path, "resnet_cifar", resnet20(seed=2, blocks=1), selection=selection, **settings)


def refusal(path, **settings) -> str:
    with pytest.raises(UserError) as error:
        loaded(path, **settings)
    return str(error.value)


PREFIXES = (
    "_orig_mod.module.", "module._orig_mod.", "model.", "net.", "backbone.", "module.encoder.",
    "model.backbone.", "state_dict.", "a.b.c.d.e.f.", "encoder_q.", "student.", "teacher.backbone.",
    "model_ema.module.", "params/params/", "opt/target/", "resnet20/",
)  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_all_names_begin_with_is_taken_off_and_reported(tmp_path, trained, capsys, prefix):
    save_file(akamaster(trained, prefix), tmp_path / "w.safetensors")
    variables, manifest = loaded(tmp_path / "w.safetensors")
    assert tree.fingerprint(variables) == tree.fingerprint(trained)
    assert manifest.prefix == prefix and manifest.to_json()["prefix"] == prefix
    assert f"the prefix {prefix!r} of all 44 names is taken off" in capsys.readouterr().err
    assert f"prefix {prefix!r}" in manifest.summary()
    assert {row.source_name for row in manifest.rows} == akamaster(trained, prefix).keys()


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("last.ckpt", lambda t: {"epoch": 3, "state_dict": t, "hyper_parameters": {"lr": 0.1}}),
        ("best.pth.tar", lambda t: {"arch": "resnet20", "state_dict": t, "best_acc1": 92.0}),
        ("model.tar", lambda t: {"net": t, "acc": 91.7, "epoch": 200}),
        ("ds.pt", lambda t: {"module": t, "ds_version": "0.14"}),
        ("strange.pt", lambda t: {"my_cnn": t, "optimizer": {"state": {0: {"exp_avg": t}}}}),
        ("pair.pt", lambda t: (t, {"epoch": 3})),
        ("deep.pt", lambda t: {"checkpoint": {"model": {"state_dict": t}}}),
    ],
)  # fmt: skip
def test_checkpoints_of_trainers_are_read(tmp_path, trained, name, wrap):
    write_zip(tmp_path / name, wrap(tensors_of(akamaster(trained, "model."))))
    variables, manifest = loaded(tmp_path / name)
    assert tree.fingerprint(variables) == tree.fingerprint(trained)
    assert manifest.prefix == "model."


def test_a_keras_base_inside_a_transfer_model_is_found():
    names = ("Conv1/kernel", "bn_Conv1/gamma", "expanded_conv_depthwise/depthwise_kernel")
    file = {f"mobilenetv2_1.00_160/{name}": np.ones(3, np.float32) for name in names}
    file["dense/kernel"] = np.ones(2, np.float32)
    chosen = choose(file, "mobilenet_v2")
    assert chosen.naming.prefix == "mobilenetv2_1.00_160/"
    assert chosen.naming.short("mobilenetv2_1.00_160/Conv1/kernel") == "Conv1/kernel"
    assert "the prefix 'mobilenetv2_1.00_160/' of 3 names" in chosen.naming.said[0]


def choose(arrays, family, **selection):
    from pathlib import Path

    from finetune_jax.pretrained import Weights

    specs = {name: (a.shape, a.dtype) for name, a in arrays.items()}
    weights = Weights(Path("w.npz"), specs, arrays.__getitem__, lambda: None)
    return choose_tensors(
        weights, maps_of(family), lambda m, name: bool(m.targets(name)), Selection(**selection)
    )


# --- Files with several sets of weights.


@pytest.mark.parametrize(
    ("wrap", "default", "roles"),
    [
        (lambda a, b: {"model": a, "model_ema": b, "optimizer": {}}, "raw", {"ema": "b"}),
        (lambda a, b: {"state_dict_ema": b, "state_dict": a}, "raw", {"ema": "b"}),
        (lambda a, b: {"params": a, "params_ema": b}, "raw", {"ema": "b"}),
        (lambda a, b: {"model": a, "ema_state_dict": b, "epoch": 1}, "raw", {"ema": "b"}),
        (lambda a, b: {"ema": {"shadow": b}, "net": a}, "raw", {"ema": "b"}),
        (lambda a, b: {**a, "model_ema": b}, "raw", {"ema": "b"}),
        (lambda a, b: {"my_cnn": a, "ema_model": b}, "raw", {"ema": "b"}),
        (lambda a, b: {"student": a, "teacher": b, "center": {"c": next(iter(a.values()))},
                       "dino_loss": {"center": next(iter(a.values()))}},
         "teacher", {"student": "a", "teacher": "b"}),
        (lambda a, b: {"model": {"student": a, "teacher": b}}, "teacher",
         {"student": "a", "teacher": "b"}),
    ],
)  # fmt: skip
def test_one_of_several_state_dicts_is_chosen_and_reported(
    tmp_path, trained, other, capsys, wrap, default, roles
):
    path = tmp_path / "w.pth"
    a, b = tensors_of(akamaster(trained)), tensors_of(akamaster(other), 500)
    write_zip(path, wrap(a, b))
    sets = {"raw": "a", **roles}
    values = {"a": tree.fingerprint(trained), "b": tree.fingerprint(other)}
    variables, manifest = loaded(path)
    said = capsys.readouterr().err
    assert manifest.weights == default and f"takes the {default} weights" in said
    assert "choose with pretrained.weights" in said
    assert tree.fingerprint(variables) == values[sets[default]]
    for role, key in roles.items():
        variables, manifest = loaded(path, weights=role)
        assert manifest.weights == role and tree.fingerprint(variables) == values[key]
        assert "choose with" not in capsys.readouterr().err
    absent = next(r for r in ("ema", "student", "raw") if r != default and r not in roles)
    message = refusal(path, weights=absent)
    assert f"pretrained.weights={absent!r}: the file has no such weights; it has" in message
    assert default in message and all(role in message for role in roles)


@pytest.mark.parametrize(
    ("first", "second", "default", "asked"),
    [
        ("student.backbone.", "teacher.backbone.", "teacher", "student"),
        ("model.", "model_ema.module.", "raw", "ema"),
        ("", "ema.", "raw", "ema"),
        ("module.encoder_q.", "module.encoder_k.", "student", "teacher"),
        ("online_encoder.net.", "target_encoder.net.", "student", "teacher"),
        ("params/", "ema_params/", "raw", "ema"),
    ],
)
def test_one_of_several_sets_of_names_is_chosen_and_reported(
    tmp_path, trained, other, capsys, first, second, default, asked
):
    path = tmp_path / "w.safetensors"
    save_file({**akamaster(trained, first), **akamaster(other, second)}, path)
    by_role = {default: (trained, first, second), asked: (other, second, first)}
    if default == "teacher":
        by_role = {"teacher": (other, second, first), "student": (trained, first, second)}
    for weights in ("", default, asked):
        variables, manifest = loaded(path, weights=weights)
        expected, prefix, left = by_role[weights or default]
        assert tree.fingerprint(variables) == tree.fingerprint(expected)
        assert (manifest.weights, manifest.prefix) == (weights or default, prefix)
        said = capsys.readouterr().err
        assert ("choose with pretrained.weights" in said) == (not weights)
        dropped = {r.source_name for r in manifest.rows if r.decision == "dropped"}
        assert {n for n in akamaster(other, left) if "num_batches" not in n} <= dropped
        assert f"and the {weights or default} weights are loaded" in manifest.summary()
    absent = {"ema", "teacher"} - {default, asked}
    message = refusal(path, weights=min(absent))
    assert "the file has no such weights; it has" in message and second in message


def test_a_file_with_one_set_names_it(tmp_path, trained):
    save_file(akamaster(trained, ""), tmp_path / "w.safetensors")
    assert loaded(tmp_path / "w.safetensors", weights="raw")[1].weights in ("", "raw")
    message = refusal(tmp_path / "w.safetensors", weights="ema")
    assert "pretrained.weights='ema': the file has no such weights; it has raw" in message
    with pytest.raises(UserError, match="unknown weights 'emma'. Did you mean 'ema'"):
        Selection(weights="emma")


def test_two_networks_without_a_role_are_not_guessed(tmp_path, trained, other):
    path = tmp_path / "w.safetensors"
    save_file({**akamaster(trained, "left."), **akamaster(other, "right.")}, path)
    message = refusal(path)
    assert "2 sets of tensors fit the model" in message and "pretrained.prefix='" in message
    for prefix, expected in (("left.", trained), ("right.", other)):
        variables, manifest = loaded(path, prefix=prefix)
        assert tree.fingerprint(variables) == tree.fingerprint(expected)
        reasons = {r.reason for r in manifest.rows if r.decision == "dropped" and r.source_name}
        assert f"does not begin with pretrained.prefix={prefix!r}" in reasons


def test_an_average_in_a_train_state_of_flax(tmp_path, trained, other):
    arrays = {f"params/{n.replace('.', '/')}": a for n, a in akamaster(trained, "").items()}
    arrays = {f"ema_params/{k}": v for k, v in tree.flatten(other).items()}
    arrays |= dict(tree.flatten(trained).items())
    arrays |= {f"opt_state/0/mu/{k}": v for k, v in tree.flatten(other).items()}
    arrays |= {"step": np.array(7, np.int32), "rng": np.array([1, 2], np.uint32)}
    write_msgpack(tmp_path / "state.msgpack", arrays)
    for weights, expected in (("", trained), ("ema", other)):
        variables, manifest = loaded(tmp_path / "state.msgpack", weights=weights)
        assert tree.fingerprint(variables) == tree.fingerprint(expected)
        assert "state of an optimizer (37 entries)" in manifest.summary()
        assert {"step", "rng"} <= set(manifest.other_entries)


# --- Prefixes and tensors that the user names.


def test_a_head_outside_of_the_prefix_needs_a_choice_of_the_user(tmp_path, trained):
    whole = akamaster(trained, "model.backbone.")
    file = {n: a for n, a in whole.items() if "linear" not in n}
    file |= {n.replace("backbone.", ""): a for n, a in whole.items() if "linear" in n}
    file["criterion.weight"] = np.ones(10, np.float32)
    save_file(file, tmp_path / "w.safetensors")
    message = refusal(tmp_path / "w.safetensors")
    assert "35 known names begin with 'model.backbone.', and 2 do not: 'model.linear." in message
    prefix = re.search(r"pretrained.prefix='([^']*)'", message)[1]
    variables, manifest = loaded(tmp_path / "w.safetensors", prefix=prefix)
    assert tree.fingerprint(variables) == tree.fingerprint(trained)
    (row,) = (r for r in manifest.rows if r.source_name == "criterion.weight")
    assert row.reason == "does not begin with pretrained.prefix='model.backbone.'"


def test_a_prefix_that_no_name_has(tmp_path, trained):
    save_file(akamaster(trained, "model.encoder."), tmp_path / "w.safetensors")
    message = refusal(tmp_path / "w.safetensors", prefix="model.encodr.")
    assert "no name begins with 'model.encodr.'. Did you mean 'model.encoder.'?" in message
    variables, _ = loaded(tmp_path / "w.safetensors", prefix="model.encoder")
    assert tree.fingerprint(variables) == tree.fingerprint(trained)


def test_parts_under_keys_of_their_own_are_one_model(tmp_path, trained):
    whole = tensors_of(akamaster(trained, ""))
    parts = {
        "backbone": {n: t for n, t in whole.items() if "linear" not in n},
        "head": {n: t for n, t in whole.items() if "linear" in n},
    }
    write_zip(tmp_path / "w.pt", parts)
    message = refusal(tmp_path / "w.pt")
    assert "4 problems" in message and "Did you mean 'head.linear.bias'?" in message
    variables, manifest = loaded(tmp_path / "w.pt", prefix="backbone.", reinitialise_head=True)
    assert tree.fingerprint(variables["batch_stats"]) == tree.fingerprint(trained["batch_stats"])
    dropped = {r.source_name for r in manifest.rows if r.decision == "dropped"}
    assert {"head.linear.weight", "head.linear.bias"} <= dropped


def test_auxiliary_tensors_are_dropped_as_the_message_says(tmp_path, trained):
    path = tmp_path / "w.safetensors"
    aux = {f"module.aux.{n}": np.ones(16, np.float32) for n in ("weight", "bias")}
    aux["module.rot_head.0.weight"] = np.ones((4, 64), np.float32)
    save_file({**akamaster(trained), **aux}, path)
    message = refusal(path)
    assert "3 problems" in message and "Did you mean" not in message
    pattern = re.search(r"pretrained.ignore='([^']*)'", message)[1]
    for ignore in (pattern, r"aux\..*|rot_head.*", r"module\.(aux|rot_head).*"):
        variables, manifest = loaded(path, ignore=ignore)
        assert tree.fingerprint(variables) == tree.fingerprint(trained)
        rows = {r.source_name: r for r in manifest.rows if r.source_name in aux}
        assert {r.decision for r in rows.values()} == {"dropped"}
        assert {r.reason for r in rows.values()} == {"matches pretrained.ignore"}
    message = refusal(path, ignore=r"aux\..*")
    assert "1 problem " in message and "rot_head" in message
    assert "matches no name; it is compared with whole names" in refusal(path, ignore="aux")
    with pytest.raises(UserError, match=r"pretrained.ignore: '\(' is no regular expression"):
        Selection(ignore="(")


def test_a_tensor_that_the_model_needs_cannot_be_dropped(tmp_path, trained):
    path = tmp_path / "w.safetensors"
    save_file(akamaster(trained), path)
    message = refusal(path, ignore=r".*bn1\.weight|linear.*")
    assert "6 problems" in message
    assert "matches tensor 'module.bn1.weight', which fills params/stem/norm/scale" in message
    assert (
        "'module.linear.bias', which fills params/head/bias; --config.pretrained.new_head=True"
    ) in message
    variables, _ = loaded(path, ignore="linear.*", reinitialise_head=True)
    body = {**trained["params"], "head": resnet20(seed=2, blocks=1)["params"]["head"]}
    assert tree.fingerprint(variables["params"]) == tree.fingerprint(body)
    # A head that does not fit is drawn anew with or without its tensors.
    init = resnet20(classes=3, seed=2, blocks=1)
    variables, _ = load(path, "resnet_cifar", init, selection=Selection(ignore="linear.*"))
    assert tree.fingerprint(variables["params"]["head"]) == tree.fingerprint(init["params"]["head"])


def test_names_that_are_equal_without_their_prefixes_are_refused(tmp_path, trained):
    path = tmp_path / "w.safetensors"
    file = akamaster(trained)
    save_file({**file, "bn1.weight": file["module.bn1.weight"].copy()}, path)
    assert "both belong to params/stem/norm/scale" in refusal(path)
    variables, manifest = loaded(path, prefix="module.")
    assert tree.fingerprint(variables) == tree.fingerprint(trained)
    (row,) = (r for r in manifest.rows if r.source_name == "bn1.weight")
    assert row.decision == "dropped"


def test_a_file_of_another_model_is_one_line(tmp_path, trained):
    path = tmp_path / "w.safetensors"
    many = {f"decoder.layers.{i}.weight": np.ones(2, np.float32) for i in range(100)}
    save_file(many, path)
    assert "no tensor has a name of the family 'resnet_cifar'" in refusal(path)
    save_file({**many, "linear.bias": np.ones(10, np.float32)}, path)
    message = refusal(path)
    assert "only 1 of 101 tensors have a name of the family" in message and "\n" not in message
    assert "python -m finetune_jax.pretrained inspect" in message


def test_a_small_part_of_a_large_file_is_had_by_its_prefix(tmp_path, trained):
    file = akamaster(trained, "vision.")
    file |= {f"language.layers.{i}.weight": np.ones(2, np.float32) for i in range(900)}
    save_file(file, tmp_path / "w.safetensors")
    message = refusal(tmp_path / "w.safetensors")
    assert "only 37 of 944 tensors have a name" in message and "\n" not in message
    assert "pretrained.prefix='vision.' drops tensors without this prefix" in message
    variables, manifest = loaded(tmp_path / "w.safetensors", prefix="vision.")
    assert tree.fingerprint(variables) == tree.fingerprint(trained)
    assert manifest.counts()["dropped"] == 907 and len(manifest.summary()) < 1000


def test_a_file_of_another_size_is_worth_a_look(tmp_path):
    save_file(akamaster(resnet20(seed=1, blocks=3)), tmp_path / "w.safetensors")
    message = refusal(tmp_path / "w.safetensors")
    assert "60 problems" in message and message.endswith(f"inspect {tmp_path / 'w.safetensors'}")


def test_empty_tensors_are_those_of_a_sharded_optimizer(tmp_path, trained):
    file = {
        n: a if "num_b" in n else np.zeros(0, np.float32) for n, a in akamaster(trained).items()
    }
    write_zip(tmp_path / "mp_rank_00_model_states.pt", {"module": tensors_of(file)})
    message = refusal(tmp_path / "mp_rank_00_model_states.pt")
    assert "no values, as in the files of DeepSpeed's ZeRO-3" in message


# --- Values.


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_are_cast(tmp_path, trained, dtype):
    file = {
        n: a.astype(dtype) if a.dtype == np.float32 else a for n, a in akamaster(trained).items()
    }
    write_zip(tmp_path / "w.pt", tensors_of(file))
    variables, manifest = loaded(tmp_path / "w.pt")
    for leaf, value in tree.flatten(variables).items():
        expected = tree.flatten(trained)[leaf].astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(value, expected)
    assert manifest.counts()["cast"] == 37


def test_whole_numbers_are_no_weights(tmp_path, trained):
    file = akamaster(trained)
    file["module.conv1.weight"] = np.ones((16, 3, 3, 3), np.int8)
    save_file(file, tmp_path / "w.safetensors")
    assert "dtype int8 in file, float32 in model, and only floats" in refusal(
        tmp_path / "w.safetensors"
    )


def test_tensors_that_share_a_storage(tmp_path, trained):
    file = akamaster(trained)
    both = np.stack([file["module.layer1.0.bn1.weight"], file["module.layer1.0.bn1.bias"]])
    storage = Storage("shared", both.ravel())
    content = tensors_of(file)
    content["module.layer1.0.bn1.weight"] = Tensor(storage, 0, (16,), (1,))
    content["module.layer1.0.bn1.bias"] = Tensor(storage, 16, (16,), (1,))
    write_zip(tmp_path / "w.pt", content)
    assert tree.fingerprint(loaded(tmp_path / "w.pt")[0]) == tree.fingerprint(trained)


def test_moments_of_an_optimizer_are_no_weights(tmp_path, trained):
    file = akamaster(trained, "")
    moments = {f"optimizer.state.{i}.exp_avg": a for i, a in enumerate(file.values())}
    moments |= {"n_averaged": np.array([3]), "global_step": np.array(3)}
    moments |= {f"{n}.exp_avg_sq": a.copy() for n, a in file.items()}
    save_file({**file, **moments}, tmp_path / "w.safetensors")
    variables, manifest = loaded(tmp_path / "w.safetensors")
    assert tree.fingerprint(variables) == tree.fingerprint(trained)
    assert set(moments) <= set(manifest.other_entries)
    with open_weights(tmp_path / "w.safetensors") as weights:
        assert len(weights.names()) == 3 * len(file) + 2


@pytest.mark.slow
def test_a_delta_of_a_wrapped_base_is_completed_by_it(small_config, weights, tmp_path):
    """The artifact knows the prefix, the set of weights and the names that its run dropped."""
    from finetune_jax import cli
    from finetune_jax.artifact import Artifact
    from finetune_jax.setup import open_setup
    from finetune_jax.training.loop import train

    base = tmp_path / "base.safetensors"
    with open_weights(weights) as file:
        arrays = {name: file.read(name) for name in file.names()}
    save_file(
        {
            **{f"student/net/{n}": -a if a.ndim == 4 else a for n, a in arrays.items()},
            **{f"teacher/net/{n}": a for n, a in arrays.items()},
            "student/net/aux": np.ones(3, np.float32),
        },
        base,
    )
    found = {}
    for contents in ("all", "delta"):
        config = cli.load_config(str(small_config))
        config.pretrained.path, config.artifact.contents = str(base), contents
        config.pretrained.weights, config.pretrained.ignore = "student", ".*aux"
        train(open_setup(config), tmp_path / contents)
        found[contents] = Artifact.load(tmp_path / contents, str(base)).variables
    assert tree.fingerprint(found["all"]) == tree.fingerprint(found["delta"])
    kernel = tree.flatten(found["delta"])["params/stem/conv/kernel"]
    np.testing.assert_array_equal(kernel, -arrays["params/stem/conv/kernel"])


def test_tensors_inside_of_known_layers_are_not_called_needless():
    others = ["blocks.0.attn.qkv.weight", "blocks.0.norm1.weight", "head.weight"]
    text = ignoring(["blocks.0.attn.q_norm.weight"], others)
    assert "lie in layers that the model has, such as 'blocks.0.attn'" in text
    assert "features would be others" in text
    inside = ignoring(["layer1.0.se.fc1.weight"], ["layer1.0.conv1.weight"])
    assert "such as 'layer1.0'" in inside
    assert "No leaf of the model lacks" in ignoring(["head.3.weight"], ["head.1.weight"])
    assert "No leaf of the model lacks this tensor" in ignoring(["aux.head.weight"], others)
