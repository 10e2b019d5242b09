"""Folders that transformers and sentence-transformers write give models with equal outputs."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="not run: needs requirements-reference.txt")
transformers = pytest.importorskip(
    "transformers", reason="not run: needs requirements-reference.txt"
)

import jax  # noqa: E402
from harness import assert_within, delta, randomise  # noqa: E402

from finetune_jax.config import default  # noqa: E402
from finetune_jax.models import build, entry_of, initial_variables  # noqa: E402
from finetune_jax.pretrained import load  # noqa: E402
from finetune_jax.pretrained.sizes import settle_model  # noqa: E402

TEXT = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
    "vocab_size": 50, "max_position_embeddings": 20,
}  # fmt: skip
IMAGE = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip


def _without(values, *keys):
    return {key: value for key, value in values.items() if key not in keys}


# Our kind of model, transformers' class, its config and settings, options of ours, and the output.
CASES = [
    ("bert", "BertForSequenceClassification", "BertConfig",
     TEXT | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}, "", "logits"),
    ("bert", "BertModel", "BertConfig", TEXT | {"hidden_act": "relu"}, "cls", "first"),
    ("roberta", "XLMRobertaForSequenceClassification", "XLMRobertaConfig",
     TEXT | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}, "pooler", "logits"),
    ("roberta", "CamembertModel", "CamembertConfig", TEXT, "cls", "first"),
    ("vit", "ViTForImageClassification", "ViTConfig",
     IMAGE | {"qkv_bias": False, "hidden_act": "relu", "layer_norm_eps": 1e-3}, "", "logits"),
    ("vit", "ViTMSNForImageClassification", "ViTMSNConfig", IMAGE, "", "logits"),
    ("vit", "DeiTForImageClassification", "DeiTConfig", IMAGE, "", "logits"),
    ("vit", "Dinov2ForImageClassification", "Dinov2Config",
     _without(IMAGE, "intermediate_size") | {"mlp_ratio": 3, "layerscale_value": 0.5}, "",
     "logits"),
    ("vit", "Dinov2Model", "Dinov2Config",
     _without(IMAGE, "intermediate_size") | {"use_swiglu_ffn": True}, "", "first"),
    ("vit", "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig",
     _without(IMAGE, "intermediate_size") | {"num_register_tokens": 3}, "", "first"),
    ("vit", "CLIPVisionModelWithProjection", "CLIPVisionConfig",
     IMAGE | {"hidden_act": "gelu", "projection_dim": 7}, "", "image_embeds"),
    ("vit", "SiglipVisionModel", "SiglipVisionConfig", IMAGE, "", "pooler_output"),
    ("resnet", "ResNetForImageClassification", "ResNetConfig",
     {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 2],
      "downsample_in_bottleneck": True}, "", "logits"),
    ("convnext", "ConvNextForImageClassification", "ConvNextConfig",
     {"hidden_sizes": [16, 24], "depths": [1, 2], "num_stages": 2}, "", "logits"),
    ("convnextv2", "ConvNextV2ForImageClassification", "ConvNextV2Config",
     {"hidden_sizes": [16, 24], "depths": [2, 1], "num_stages": 2, "patch_size": 2}, "", "logits"),
    ("resnet", "ResNetForImageClassification", "ResNetConfig",
     {"embedding_size": 16, "hidden_sizes": [16, 24], "depths": [2, 1], "layer_type": "basic"}, "",
     "logits"),
]  # fmt: skip


def ours(folder, kind, pooling, inputs, stop):
    """The output of the model that a folder gives."""
    config = default()
    config.model.name, config.model.pooling = kind, pooling
    config.pretrained.path = str(folder / "model.safetensors")
    settled = settle_model(config)
    model = build(settled.model.name, 7)
    size = 18 if entry_of(settled.model.name).tokens else settled.data.image_size or 32
    zeros = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), initial_variables(model, size, stages=())
    )
    path, family = config.pretrained.path, entry_of(settled.model.name).family
    variables, _ = load(path, family, zeros, model, reinitialise_head=bool(stop))
    return model.apply(variables, inputs, stop=stop)


@pytest.mark.parametrize(
    ("kind", "name", "config", "settings", "pooling", "output"), CASES,
    ids=[f"{name}-{i}" for i, (_, name, *_) in enumerate(CASES)],
)  # fmt: skip
def test_a_folder_gives_the_outputs_of_its_model(
    tmp_path, kind, name, config, settings, pooling, output
):
    settings = getattr(transformers, config)(**settings, num_labels=7)
    module = randomise(getattr(transformers, name)(settings))
    module.save_pretrained(tmp_path)
    draw = np.random.default_rng(0)
    if kind in ("bert", "roberta"):
        ids = draw.integers(3, 50, (2, 10))
        mask = np.arange(10)[None] < np.array([[10], [6]])
        ids = np.where(mask, ids, settings.pad_token_id)
        inputs = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        fed = {key: torch.from_numpy(value) for key, value in inputs.items()}
    else:
        inputs = draw.normal(size=(2, 16, 16, 3) if kind == "vit" else (2, 64, 64, 3))
        inputs = inputs.astype(np.float32)
        fed = {"pixel_values": torch.from_numpy(inputs.transpose(0, 3, 1, 2).copy())}
    with torch.no_grad():
        found = module(**fed)
    expected = found.last_hidden_state[:, 0] if output == "first" else found[output]
    headed = output in ("logits", "image_embeds")
    got = ours(tmp_path, kind, pooling, inputs, None if headed else "head")
    assert_within([delta(output, got, expected.numpy())])


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_folder_of_sentence_transformers_gives_its_embeddings(tmp_path, pooling):
    modules = pytest.importorskip(
        "sentence_transformers.sentence_transformer.modules", reason="not run: not installed"
    )
    bert = randomise(transformers.BertModel(transformers.BertConfig(**TEXT)))
    bert.save_pretrained(tmp_path)
    pool = modules.Pooling(24, pooling_mode=pooling)
    (tmp_path / "1_Pooling").mkdir()
    pool.save(str(tmp_path / "1_Pooling"))
    (tmp_path / "modules.json").write_text(
        '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},'
        ' {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooli'
        'ng"}]'
    )
    ids = np.random.default_rng(0).integers(3, 50, (2, 10))
    mask = np.ones_like(ids)
    mask[1, 6:] = 0
    with torch.no_grad():
        tokens = bert(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state
        features = {"token_embeddings": tokens, "attention_mask": torch.from_numpy(mask)}
        expected = pool(features)["sentence_embedding"].numpy()
    got = ours(tmp_path, "bert", "", {"input_ids": ids, "attention_mask": mask}, "head")
    assert_within([delta("embedding", got, expected)])
