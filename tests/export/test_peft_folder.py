"""Adapters of peft: what is written is read back as deltas with the same outputs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from exported_models import SMALL_BERT, SMALL_VIT, examples, made
from safetensors.numpy import load_file, save_file

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.export import export
from finetune_jax.export.formats import format_of
from finetune_jax.pretrained.adapter import read_adapter

BERT = f"{SMALL_BERT[:-1]}, pooling='pooler')"
LORA = "lora(rank=3, alpha=6)"


def test_modules_of_a_fused_projection_are_blocks_of_one_adapter(tmp_path):
    model = made(SMALL_VIT, "timm", scheme=f"{LORA} + head")
    format_of("peft").write(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert all(tensor.startswith("base_model.model.") for tensor in tensors)
    assert config["r"] == 6 and config["lora_alpha"] == 12
    assert config["target_modules"] == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    assert config["modules_to_save"] == ["head"]
    b = tensors["base_model.model.blocks.0.attn.qkv.lora_B.weight"]
    assert b.shape == (96, 6) and not b[32:64].any() and not b[:32, 3:].any()
    leaves = tree.flatten(model.artifact.variables)
    adapter = read_adapter(tmp_path, "vit", leaves)
    assert adapter.deltas == model.artifact.model.deltas
    assert len(adapter.leaves) == 2 * 4 + 2
    for path, value in adapter.leaves.items():
        np.testing.assert_array_equal(value, leaves[path], err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "names", "scheme"),
    [
        (SMALL_VIT, "transformers", f"{LORA} + head"),
        (SMALL_VIT, "timm", "lora(rank=2, dora=True) + head + norm"),
        (SMALL_VIT, "timm", "ia3 + head"),
        (BERT, "", "lora(rank=3, pissa=True, rslora=True) + head"),
        (BERT, "", f"head + {LORA} + bias_only"),
        ("resnet18", "timm", "lora(rank=2, on='conv1') + head"),
    ],
)
def test_an_adapter_is_read_back_to_the_same_outputs(tmp_path, name, names, scheme):
    model = made(name, names, size=12 if "bert" in name else 32, scheme=scheme)
    found = export(model, "peft", tmp_path / "out", examples(model, 8))
    assert found["max_abs_difference"] < 1e-5


@pytest.mark.parametrize(
    ("name", "names", "scheme", "message"),
    [
        (SMALL_VIT, "timm", "full", "the model has no deltas .scheme 'full'"),
        (SMALL_VIT, "timm", "ssf + head", "peft has no adapter that computes ssf; it has lora"),
        (SMALL_VIT, "timm", "lora(rank=2) + ia3 + head", "an adapter is of one kind"),
        (SMALL_VIT, "timm", "lora(rank=2) + head + stages('stem')", "stem/class_token has changed"),
        (SMALL_VIT, "timm", "lora(rank=2) + head + last_k(2)", "has changed under a delta"),
        (f"{SMALL_BERT[:-1]}, pooling='mean')", "", "lora(rank=2) + head", "has this head"),
    ],
)
def test_what_no_adapter_holds_is_refused(tmp_path, name, names, scheme, message):
    size = 12 if "bert" in name else 32
    model = made(name, names, size=size, scheme="" if scheme == "full" else scheme)
    with pytest.raises(UserError, match=message):
        export(model, "peft", tmp_path / "out", examples(model, 2))
    assert not (tmp_path / "out").exists()


def _written(folder, **changes):
    model = made(SMALL_VIT, "timm", scheme=f"{LORA} + head")
    format_of("peft").write(model, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    return model.artifact.card["model"]["family"], tree.flatten(model.artifact.variables)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "expected LORA or IA3"),
        ({"init_lora_weights": "pissa"}, "has changed the weights of the base"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True is not supported"),
    ],
)
def test_an_adapter_that_no_delta_expresses_is_refused(tmp_path, changes, message):
    family, leaves = _written(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        read_adapter(tmp_path, family, leaves)


def test_an_adapter_of_another_model_names_a_module(tmp_path):
    _, leaves = _written(tmp_path)
    with pytest.raises(UserError, match=r"modules of the adapter.*'blocks.0.attn.qkv'"):
        read_adapter(tmp_path, "bert", leaves)
    with pytest.raises(UserError, match="adapter_config.json is missing"):
        read_adapter(tmp_path / "no", "vit", leaves)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    head = tensors.pop("base_model.model.head.weight")
    save_file({**tensors, "base_model.model.head.weight": np.zeros((5, head.shape[1]), np.float32)},
              tmp_path / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(UserError, match=r"'head.weight' has values of the shape \(32, 5\)"):
        read_adapter(tmp_path, "vit", leaves)


def test_the_scales_of_ranks_and_modules_are_those_of_pefts_patterns(tmp_path):
    family, leaves = _written(
        tmp_path, alpha_pattern={"blocks.1.attn.qkv": 30}, use_rslora=True, lora_alpha=12
    )
    deltas = {d.module: d for d in read_adapter(tmp_path, family, leaves).deltas}
    assert set(deltas) == {f"block_{i}/attn/{m}" for i in range(2) for m in ("query", "value")}
    # Of the rank 6 of the block form, each module uses 3; its scale is that of the rank 6.
    assert deltas["block_0/attn/query"].rank == 3
    assert deltas["block_0/attn/query"].scale == pytest.approx(12 / 6**0.5)
    assert deltas["block_1/attn/value"].scale == pytest.approx(30 / 6**0.5)
