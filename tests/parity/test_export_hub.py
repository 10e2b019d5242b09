"""Exported folders are opened strictly by timm, transformers and sentence-transformers.

No key is missing and none is unexpected, and the outputs are those of our model.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="not run: needs requirements-reference.txt")
timm = pytest.importorskip("timm", reason="not run: needs requirements-reference.txt")
transformers = pytest.importorskip(
    "transformers", reason="not run: needs requirements-reference.txt"
)

from exported_models import SMALL_BERT, SMALL_VIT, examples, made  # noqa: E402

from finetune_jax.export.formats import format_of  # noqa: E402
from finetune_jax.tasks.similarity import Similarity  # noqa: E402

_VIT, _BERT = SMALL_VIT[:-1], SMALL_BERT[:-1]
_ROBERTA = _BERT.replace("bert(", "roberta(") + ", padding=0"
_DINOV2 = f"{_VIT}, layer_scale=1.0, pooling='token_gap'"


def _exported(tmp_path, name, names, **options):
    model = made(name, names, **options)
    format_of("safetensors").write(model, tmp_path)
    return model, tmp_path


def _pixels(model, size, count=4):
    images = np.random.default_rng(3).integers(0, 256, (count, size, size, 3), np.uint8)
    expected = model.artifact.outputs({"image": images})
    ready = np.asarray(model.artifact.preprocess.device({"image": images}))
    return torch.from_numpy(ready.transpose(0, 3, 1, 2).copy()), expected


def _close(found, expected):
    scale = max(1.0, float(np.abs(expected).max()))
    assert float(np.abs(found.detach().numpy() - expected).max()) < 1e-4 * scale


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (SMALL_VIT, {}),
        (f"{_VIT}, pooling='gap', norm_pooled=True)", {}),
        (f"{_VIT}, pooling='gap', class_token=False)", {}),
        (f"{_VIT}, pooling='map', class_token=False, activation='gelu_tanh', inner=70)", {}),
        (f"{_VIT}, registers=2, positions='patches', layer_scale=1e-5)", {}),
        (f"{_VIT}, qkv_bias=False, pre_norm=True, patch_bias=False, activation='gelu_quick')", {}),
        ("vit_ti16", {"size": 64}),
        ("augreg_ti16", {"size": 224}),
        ("deit_ti16", {"size": 224}),
        ("deit3_s16", {"size": 64}),
        ("dinov2_s14", {"size": 56, "head": "token"}),
        ("resnet18", {}),
        ("convnext_atto", {}),
        ("convnextv2_atto", {}),
        ("mobilenetv2_050", {}),
        ("mixer_s32", {"size": 64}),
        ("bit_r50x1", {}),
    ],
)
def test_timm_opens_the_folder_strictly(tmp_path, name, options):
    size = options.pop("size", 32)
    model, folder = _exported(tmp_path, name, "timm", size=size, **options)
    opened = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels, expected = _pixels(model, size)
    with torch.no_grad():
        _close(opened(pixels), expected)
    config = timm.data.resolve_data_config(model=opened)
    preprocess = model.artifact.preprocess
    assert tuple(config["input_size"]) == (3, size, size) and config["crop_pct"] == preprocess.crop
    assert tuple(config["mean"]) == preprocess.mean and config["interpolation"] == "bilinear"
    assert opened.pretrained_cfg["label_names"] == ["ant", "bee", "cat"]
    other = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=5)
    assert other.get_classifier().weight.shape[0] == 5


def test_timm_opens_the_file_of_an_architecture_by_an_overlay(tmp_path):
    model, folder = _exported(tmp_path, "vit_ti16", "timm", size=224)
    overlay = {"file": str(folder / "model.safetensors"), "num_classes": 3}
    opened = timm.create_model(
        "vit_tiny_patch16_224", pretrained=True, num_classes=3, pretrained_cfg_overlay=overlay
    ).eval()
    pixels, expected = _pixels(model, 224, 2)
    with torch.no_grad():
        _close(opened(pixels), expected)


def _opened(kind, folder, **options):
    found, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[key], (key, info[key])
    return found.eval()


@pytest.mark.parametrize(
    ("name", "size", "head"),
    [
        (SMALL_VIT, 32, ""),
        (f"{_VIT}, registers=1, class_token=True, epsilon=1e-12, inner=50)", 32, ""),
        (f"{_VIT}, qkv_bias=False, activation='gelu_quick')", 32, ""),
        (f"{_DINOV2})", 32, ""),
        (f"{_DINOV2}, registers=4, positions='class')", 32, ""),
        (f"{_DINOV2}, activation='swiglu', inner=88)", 32, ""),
        ("resnet(depths=(1, 2), widths=(32, 64), bottleneck=True, stride_first=True)", 32, ""),
        ("resnet18", 32, ""),
        ("convnext_atto", 32, ""),
        ("convnextv2_atto", 32, ""),
        ("mobilenetv1_025", 64, ""),
        ("mobilenetv2_050", 32, ""),
        ("mobilenetv2_100_keras", 33, ""),
        ("bit_r50x1", 32, ""),
    ],
)
def test_transformers_opens_a_classifier_of_images_strictly(tmp_path, name, size, head):
    model, folder = _exported(tmp_path, name, "transformers", size=size, head=head)
    opened = _opened(transformers.AutoModelForImageClassification, folder)
    pixels, expected = _pixels(model, size)
    with torch.no_grad():
        _close(opened(pixels).logits, expected)
    assert opened.config.id2label == {0: "ant", 1: "bee", 2: "cat"}
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    image = _photo(2 * size)
    ours = model.artifact.preprocess
    theirs = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    batch = {"image": ours.host({"image": image})["image"][None]}
    # Two steps of 8 bits: the two libraries round the resized pixels differently.
    step = 2.5 / 255 / min(ours.std)
    assert np.abs(np.asarray(ours.device(batch))[0] - theirs).max() <= step


def _photo(side):
    """A smooth square image."""
    rows, columns = np.mgrid[:side, :side] / side
    colours = [rows, columns, (rows + columns) / 2]
    return np.round(255 * np.stack(colours, -1)).astype(np.uint8)


@pytest.mark.parametrize("name", [f"{_BERT}, pooling='pooler')", f"{_ROBERTA}, pooling='pooler')"])
def test_transformers_opens_a_classifier_of_texts_strictly(tmp_path, name):
    model, folder = _exported(tmp_path, name, "", size=12)
    opened = _opened(transformers.AutoModelForSequenceClassification, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [example["text"] for example in examples(model)]
    expected = _outputs(model, texts)
    with torch.no_grad():
        fed = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        _close(opened(**fed).logits, expected)
    assert opened.config.id2label == {0: "ant", 1: "bee", 2: "cat"}


def _outputs(model, texts):
    ready = [model.artifact.preprocess.host({"text": text}) for text in texts]
    return model.artifact.outputs({name: np.stack([x[name] for x in ready]) for name in ready[0]})


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", [_BERT, _ROBERTA])
@pytest.mark.parametrize("task", [None, Similarity(width=32)])
def test_sentence_transformers_opens_an_encoder_with_its_head(tmp_path, pooling, kind, task):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model, folder = _exported(tmp_path, f"{kind}, pooling='{pooling}')", "", size=12, task=task)
    texts = [example["text"] for example in examples(model)]
    expected = _outputs(model, texts)
    opened = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    _close(torch.from_numpy(opened.encode(texts)), expected)
    _opened(transformers.AutoModel, folder, add_pooling_layer=False)
