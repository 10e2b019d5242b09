"""Adapters go to `peft` over timm and transformers and come back from there, with equal outputs."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="not run: needs requirements-reference.txt")
timm = pytest.importorskip("timm", reason="not run: needs requirements-reference.txt")
transformers = pytest.importorskip(
    "transformers", reason="not run: needs requirements-reference.txt"
)
peft = pytest.importorskip("peft", reason="not run: needs requirements-reference.txt")

from exported_models import SMALL_BERT, SMALL_VIT, examples, hub_base, made  # noqa: E402

from finetune_jax import tree  # noqa: E402
from finetune_jax.deltas import Adapted  # noqa: E402
from finetune_jax.export.formats import format_of  # noqa: E402
from finetune_jax.pretrained.adapter import read_adapter  # noqa: E402

BERT = f"{SMALL_BERT[:-1]}, pooling='pooler')"
DINOV2 = f"{SMALL_VIT[:-1]}, layer_scale=1.0, pooling='token_gap')"


def open_base(model, folder):
    if (folder / "preprocessor_config.json").is_file():
        return transformers.AutoModelForImageClassification.from_pretrained(folder)
    if (folder / "tokenizer.json").is_file():
        return transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    return timm.create_model(f"local-dir:{folder}", pretrained=True)


def _inputs(model, count=4):
    """(our batch, the call of a torch model)."""
    ready = [model.artifact.preprocess.host(x) for x in examples(model, count)]
    batch = {name: np.stack([x[name] for x in ready]) for name in ready[0]}
    if "image" in batch:
        pixels = np.asarray(model.artifact.preprocess.device(batch)).transpose(0, 3, 1, 2)
        return batch, lambda module: module(torch.from_numpy(pixels.copy()))
    fed = {name: torch.from_numpy(x.astype(np.int64)) for name, x in batch.items()}
    return batch, lambda module: module(**fed)


def _outputs(module, call):
    module.eval()
    with torch.no_grad():
        found = call(module)
    return getattr(found, "logits", found).numpy()


def _close(found, expected):
    scale = max(1.0, float(np.abs(expected).max()))
    assert np.abs(found - expected).max() <= 1e-5 * scale


@pytest.mark.parametrize(
    ("name", "names", "scheme"),
    [
        (SMALL_VIT, "timm", "lora(rank=3, alpha=6) + head"),
        (SMALL_VIT, "timm", "lora(rank=2, dora=True, on='query|value|mlp_in') + head + norm"),
        (SMALL_VIT, "timm", "lora(rank=2, pissa=True, rslora=True) + head"),
        (SMALL_VIT, "timm", "ia3 + head"),
        (SMALL_VIT, "transformers", "lora(rank=3, alpha=6, on='query|value|out') + head"),
        (SMALL_VIT, "transformers", "lora(rank=3, rslora=True) + head + stages('stem')"),
        (SMALL_VIT, "transformers", "ia3 + head + norm"),
        (DINOV2, "transformers", "lora(rank=3) + head"),
        (BERT, "", "lora(rank=3, pissa=True, rslora=True) + head"),
        (BERT, "", "head + lora(rank=3, alpha=6) + bias_only"),
        (BERT, "", "lora(rank=2, dora=True) + head + norm"),
        (BERT, "", "ia3 + head"),
        ("resnet18", "timm", "lora(rank=2, on='conv1') + head"),
        ("resnet18", "transformers", "lora(rank=2, on='conv2') + head + norm"),
        ("convnext_atto", "timm", "lora(rank=2, on='mlp_in|mlp_out') + head"),
    ],
)
def test_an_adapter_gives_our_logits_in_peft(tmp_path, name, names, scheme):
    size = 12 if "bert" in name else 32
    model = made(name, names, size=size, scheme=scheme)
    (tmp_path / "adapter").mkdir()
    hub_base(model, tmp_path / "base")
    base = open_base(model, tmp_path / "base")
    batch, call = _inputs(model)
    format_of("peft").require(model)
    format_of("peft").write(model, tmp_path / "adapter")
    without = _outputs(base, call)
    with _no_warning_of_keys():
        wrapped = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    expected = model.artifact.outputs(batch)
    _close(_outputs(wrapped, call), expected)
    assert np.abs(without - expected).max() > 1e-3


@contextlib.contextmanager
def _no_warning_of_keys():
    """peft warns of missing keys, and raises for others."""
    import warnings

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    assert not [w for w in said if "missing adapter keys" in str(w.message)], said


@pytest.mark.parametrize(
    ("name", "names", "config"),
    [
        (SMALL_VIT, "timm", {"target_modules": ["qkv", "fc2"], "modules_to_save": ["head"]}),
        (SMALL_VIT, "timm", {"target_modules": ["qkv"], "use_dora": True}),
        (SMALL_VIT, "transformers", {
            "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"],
            "use_rslora": True, "rank_pattern": {"layers.1.attention.q_proj": 2},
            "alpha_pattern": {"v_proj": 3}}),
        (BERT, "", {"target_modules": r".*\.(query|value)", "task_type": "SEQ_CLS"}),
        (BERT, "", {"target_modules": ["key", "value", "output.dense"], "kind": "IA3",
                    "feedforward_modules": ["output.dense"], "task_type": "SEQ_CLS"}),
        (BERT, "", {"target_modules": ["query"], "bias": "lora_only"}),
        ("resnet18", "timm", {"target_modules": ["conv1"], "modules_to_save": ["bn1", "fc"]}),
    ],
)  # fmt: skip
def test_an_adapter_of_peft_gives_its_logits_here(tmp_path, name, names, config):
    size = 12 if "bert" in name else 32
    model = made(name, names, size=size)
    (tmp_path / "base").mkdir()
    format_of("safetensors").write(model, tmp_path / "base")
    base = open_base(model, tmp_path / "base")
    config = dict(config)
    if config.pop("kind", "") == "IA3":
        settings = peft.IA3Config(**config)
    else:
        settings = peft.LoraConfig(r=3, lora_alpha=7, **config)
    wrapped = peft.get_peft_model(base, settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(parameter * (1 + 0.2 * noise) + 0.1 * noise)
    wrapped.save_pretrained(tmp_path / "adapter")
    batch, call = _inputs(model)
    expected = _outputs(wrapped, call)

    artifact = model.artifact
    flat = tree.flatten(artifact.variables)
    module = artifact.model.model
    adapter = read_adapter(
        tmp_path / "adapter", artifact.card["model"]["family"], flat, module.sizes
    )
    filled = tree.unflatten({**flat, **adapter.values(flat)})
    variables = {"params": filled["params"], "batch_stats": filled.get("batch_stats", {})}
    adapted = Adapted(module, adapter.deltas)
    found = np.asarray(adapted.apply(variables, artifact.preprocess.device(batch)))
    _close(found, expected)
    assert np.abs(artifact.outputs(batch) - expected).max() > 1e-2
