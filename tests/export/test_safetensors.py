"""Folders of the hub: names, descriptions, and the same outputs when they are read back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from exported_models import CLASSES, SMALL_BERT, SMALL_VIT, WORDS, examples, made
from safetensors.numpy import load_file, save_file

from finetune_jax.errors import UserError
from finetune_jax.export import agreement, export
from finetune_jax.export.formats import format_of
from finetune_jax.export.hub import destination
from finetune_jax.files import read_json
from finetune_jax.models import GENERIC, MODELS
from finetune_jax.models.spellings import CATALOGUE
from finetune_jax.pretrained.sizes import transformers_config
from finetune_jax.tasks.segmentation import Segmentation
from finetune_jax.tasks.similarity import Similarity

MEAN_BERT, POOLER_BERT = (f"{SMALL_BERT[:-1]}, pooling='{p}')" for p in ("mean", "pooler"))


@pytest.mark.parametrize(
    ("name", "names", "opener"),
    [
        (SMALL_VIT, "timm", "vit_base_patch16_224"),
        *(
            pytest.param(*values, marks=pytest.mark.slow)
            for values in (
                (SMALL_VIT, "transformers", "ViTForImageClassification"),
                (MEAN_BERT, "", "BertModel"),
                (POOLER_BERT, "", "BertForSequenceClassification"),
                ("mobilenetv1_025", "", "MobileNetV1ForImageClassification"),
                ("resnet18", "torchvision", "the code of torchvision"),
            )
        ),
    ],
)
def test_a_folder_is_read_back_to_the_same_outputs(tmp_path, name, names, opener):
    size = 12 if name.startswith("bert") else 32
    model = made(name, names, size=size)
    assert destination(model).opener == opener
    found = export(model, "safetensors", tmp_path / "out", examples(model, 8))
    assert found["argmax_agreement"] == 1
    assert found["max_abs_difference"] < 1e-5
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    if opener != "BertModel":
        labels = config.get("label_names") or config.get("outputs")
        assert (labels or [config["id2label"][str(i)] for i in range(3)]) == list(CLASSES)


def test_a_changed_file_does_not_agree(tmp_path):
    model = made(SMALL_VIT, "timm")
    format_ = format_of("safetensors")
    format_.write(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    qkv = tensors["blocks.1.attn.qkv.weight"]
    assert qkv.shape == (96, 32)
    tensors["blocks.1.attn.qkv.weight"] = np.concatenate([qkv[32:64], qkv[:32], qkv[64:]])
    save_file(tensors, tmp_path / "model.safetensors")
    found = agreement.compare(model.artifact, format_.opened(model, tmp_path), examples(model, 4))
    with pytest.raises(UserError, match="another model"):
        agreement.require_agreement(found)


@pytest.mark.parametrize("crop", [0.0, 0.875])
@pytest.mark.parametrize("names", ["timm", "transformers"])
def test_the_preprocessing_is_that_of_the_run(tmp_path, names, crop):
    model = made(SMALL_VIT, names, crop=crop)
    format_of("safetensors").write(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if names == "timm":
        assert config["pretrained_cfg"]["crop_pct"] == (crop or 1.0)
        assert config["pretrained_cfg"]["crop_mode"] == ("center" if crop else "squash")
        assert config["pretrained_cfg"]["classifier"] == "head"
        assert config["pretrained_cfg"]["first_conv"] == "patch_embed.proj"
        return
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    side = {"shortest_edge": 37} if crop else {"height": 32, "width": 32}
    assert processor["size"] == side
    assert processor["resample"] == 2 and processor["image_mean"] == [0.5, 0.5, 0.5]


def test_the_tokenizer_travels_with_the_names_of_its_special_tokens(tmp_path):
    model = made(MEAN_BERT, size=12)
    format_of("safetensors").write(model, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 12
    assert [config[role] for role in ("pad_token", "unk_token", "cls_token", "sep_token")] == WORDS[
        :4
    ]
    assert "mask_token" not in config
    assert (tmp_path / "tokenizer.json").read_text() == model.artifact.preprocess.tokenizer
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Dense"]
    assert load_file(tmp_path / "2_Dense" / "model.safetensors")["linear.weight"].shape == (3, 32)
    assert "embeddings.word_embeddings.weight" in load_file(tmp_path / "model.safetensors")


def test_a_head_that_changes_nothing_is_no_module(tmp_path):
    model = made(MEAN_BERT, size=12, task=Similarity(width=32))
    head = model.artifact.variables["params"]["head"]
    head["kernel"], head["bias"] = np.eye(32, dtype=np.float32), np.zeros(32, np.float32)
    format_of("safetensors").write(model, tmp_path)
    assert len(json.loads((tmp_path / "modules.json").read_text())) == 2
    assert not (tmp_path / "2_Dense").exists()


def test_what_transformers_describes_is_what_our_reader_of_its_files_reads():
    read = []
    for name in read_json(CATALOGUE):
        entry = MODELS[name]
        asked, size = (f"{name}(pooling='pooler')", 12) if entry.tokens else (name, 224)
        model = made(asked, "transformers", size=size, abstract=True)
        try:
            config = dict(destination(model).files["config.json"])
        except UserError:
            continue
        if config["model_type"] not in transformers_config.MODEL_TYPES:
            continue
        found = transformers_config.read(config, name)
        module = model.artifact.model.model
        assert GENERIC[found.model].family.removesuffix("_1x1") in entry.family
        for option, value in found.options.items():
            if option != "layer_scale":  # an initial value, which a trained model does not show
                assert getattr(module, option) in (value, 0 if option == "inner" else value), option
        read.append(name)
    assert {"vit_b16", "deit_s16_distilled", "resnet50", "bert_base_uncased", "roberta_base"} <= {
        *read
    }


@pytest.mark.parametrize(
    ("name", "names", "message"),
    [
        ("resnet20_cifar", "", "no library opens resnet20_cifar.*--names=native or --names=akama"),
        ("resnet20_cifar", "timm", "timm cannot open this model: it has no architecture"),
        ("resnet20_cifar", "akamster", "no such names. Did you mean 'akamaster'"),
        ("vgg16_keras", "", "no library opens vgg16_keras.*--names=keras"),
        (SMALL_VIT, "sentence-transformers", "it has encoders of texts. A library opens it with"),
        (MEAN_BERT, "transformers", "reads pooling='mean'.*--names=sentence-transformers"),
        ("dinov2_s14_reg", "timm", "no positions='class' and registers"),
    ],
)
def test_what_no_library_computes_is_refused_with_what_is_possible(name, names, message):
    size = 12 if name.startswith("bert") else 224
    model = made(name, names, size=size, abstract="dinov2" in name or "vgg" in name)
    with pytest.raises(UserError, match=message):
        format_of("safetensors").require(model)


def test_a_segmentation_is_no_classifier():
    model = made("vit_ti16", "", size=32, abstract=True)
    task = Segmentation(CLASSES, size=32)
    adapted = task.adapt(model.artifact.model.model)
    object.__setattr__(model.artifact.model, "model", adapted)
    with pytest.raises(UserError, match="no library opens vit_ti16"):
        format_of("safetensors").require(model)
