"""Folders of the hub: names, descriptions, and the same outputs when they are read back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from exported_models import CLASSES, SMALL_BERT, SMALL_VIT, examples, made
from safetensors.numpy import load_file

from finetune_jax.errors import UserError
from finetune_jax.export import export, merged
from finetune_jax.export.formats import Model, format_of
from finetune_jax.export.hub import destination
from finetune_jax.tasks.similarity import Similarity


@pytest.mark.parametrize(
    ("name", "names", "opener"),
    [
        (SMALL_VIT, "timm", "vit_base_patch16_224"),
        (SMALL_VIT, "transformers", "ViTForImageClassification"),
        (f"{SMALL_BERT[:-1]}, pooling='pooler')", "", "BertForSequenceClassification"),
        (f"{SMALL_BERT[:-1]}, pooling='mean')", "", "BertModel"),
        ("mobilenetv1_025", "", "MobileNetV1ForImageClassification"),
    ],
)
def test_a_folder_is_read_back_to_the_same_outputs(tmp_path, name, names, opener):
    size = 12 if name.startswith("bert") else 32
    model = made(name, names, size=size)
    assert destination(model).opener == opener
    found = export(model, "safetensors", tmp_path / "out", examples(model))
    assert found["argmax_agreement"] == 1
    assert found["max_abs_difference"] < 1e-5
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    if opener != "BertModel":
        labels = config.get("label_names") or [config["id2label"][str(i)] for i in range(3)]
        assert labels == list(CLASSES)
