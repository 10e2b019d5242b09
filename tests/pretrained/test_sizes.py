"""Sizes and pooling of a model from the files beside its weights."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from finetune_jax import tree
from finetune_jax.artifact import Artifact
from finetune_jax.base_variables import load_variables
from finetune_jax.config import default, to_json
from finetune_jax.data.images import resize
from finetune_jax.errors import UserError
from finetune_jax.models import build, entry_of, initial_variables
from finetune_jax.models.convnext import ConvNeXt
from finetune_jax.models.options import split
from finetune_jax.models.resnet import ResNet
from finetune_jax.models.text_encoder import TextEncoder
from finetune_jax.models.vit import ViT
from finetune_jax.pretrained import load, open_weights, save_as
from finetune_jax.pretrained.inspection import report
from finetune_jax.pretrained.sizes import settle_model
from finetune_jax.setup import _tokenizer_beside, open_setup
from finetune_jax.training.loop import train

BERT = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 24, "vocab_size": 30, "max_position_embeddings": 12, "type_vocab_size": 3,
    "layer_norm_eps": 1e-6, "hidden_act": "gelu_new", "pad_token_id": 2,
}  # fmt: skip
SMALL = TextEncoder(
    width=16, depth=2, heads=4, num_classes=1, inner=24, vocabulary=30, positions=12, types=3,
    padding=2, epsilon=1e-6, activation="gelu_tanh",
)  # fmt: skip
VIT = {
    "model_type": "vit", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 48, "image_size": 16, "patch_size": 4, "qkv_bias": False,
}  # fmt: skip
PREPROCESSING = {
    "do_resize": True, "size": {"height": 16, "width": 16}, "do_normalize": True, "resample": 3,
    "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "rescale_factor": 1 / 255,
}  # fmt: skip


def settle(name, path="", **changes):
    config = default()
    config.model.name, config.pretrained.path = name, str(path)
    config.update_from_flattened_dict(changes)
    return settle_model(config)


def model_of(name, path="", **changes):
    return build(settle(name, path, **changes).model.name, 1)


def same(model, other):
    """Whether both modules compute the same; 0 and None stand for default values."""

    def plain(m):
        changes = {}
        if isinstance(m, ViT | TextEncoder):
            changes["inner"] = m.inner or 4 * m.width
        if isinstance(m, ViT):
            changes |= {"class_token": m.has_class_token, "layer_scale": float(m.layer_scale > 0)}
            # Both epsilons are far below the variances of tokens.
            changes["epsilon"] = 1e-6 if m.epsilon == 1e-12 else m.epsilon
            if m.registers == 0 and m.has_class_token:
                changes["positions"] = "all"
        return m.clone(**changes)

    return plain(model) == plain(other)


def write(folder, values, name="config.json"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return folder


def shapes(model, size):
    return initial_variables(model, size, stages=())


def save(folder, model, family, origin, size):
    """Random weights of a model under the names of an origin."""
    draw = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: np.abs(0.1 * draw.normal(size=x.shape)).astype(x.dtype), shapes(model, size)
    )
    path = folder / "model.safetensors"
    save_as(path, variables, family, origin, model.sizes)
    return path, variables


CLIP = {"hidden_size": 768, "patch_size": 32}
ENTRIES = [
    ("bert_base_uncased", {"model_type": "bert"}, "bert", {"pooling": "pooler"}),
    ("bert_large_uncased",
     {"model_type": "bert", "hidden_size": 1024, "num_hidden_layers": 24,
      "num_attention_heads": 16, "intermediate_size": 4096}, "bert", {"pooling": "pooler"}),
    ("roberta_base",
     {"model_type": "roberta", "max_position_embeddings": 514, "type_vocab_size": 1,
      "layer_norm_eps": 1e-5, "vocab_size": 50265}, "roberta", {"pooling": "pooler"}),
    ("vit_b16", {"model_type": "vit"}, "vit", {}),
    ("deit_s16_distilled",
     {"model_type": "deit", "hidden_size": 384, "num_attention_heads": 6,
      "intermediate_size": 1536}, "vit", {}),
    ("dinov2_s14",
     {"model_type": "dinov2", "hidden_size": 384, "num_attention_heads": 6}, "vit", {}),
    ("dinov2_g14_reg",
     {"model_type": "dinov2_with_registers", "hidden_size": 1536, "num_hidden_layers": 40,
      "num_attention_heads": 24, "patch_size": 14, "use_swiglu_ffn": True}, "vit", {}),
    ("clip_vit_b32", {"model_type": "clip_vision_model", **CLIP}, "vit", {}),
    ("clip_vit_b32", {"model_type": "clip", "vision_config": CLIP}, "vit", {}),
    ("siglip_b16", {"model_type": "siglip", "vision_config": {"patch_size": 16}}, "vit", {}),
    ("resnet50", {"model_type": "resnet"}, "resnet", {}),
    ("convnext_tiny", {"model_type": "convnext"}, "convnext", {}),
    ("convnextv2_atto",
     {"model_type": "convnextv2", "depths": [2, 2, 6, 2], "hidden_sizes": [40, 80, 160, 320]},
     "convnextv2", {}),
    ("resnet18",
     {"model_type": "resnet", "layer_type": "basic", "depths": [2, 2, 2, 2],
      "hidden_sizes": [64, 128, 256, 512]}, "resnet", {}),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "values", "kind", "options"), ENTRIES)
def test_a_config_file_gives_the_model_of_the_registry(tmp_path, entry, values, kind, options):
    name = settle(kind, write(tmp_path, values), **{"model.pooling": options.get("pooling", "")})
    assert same(build(name.model.name, 1), build(entry, 1))


def test_every_setting_of_a_text_encoder_is_honoured(tmp_path):
    folder = write(tmp_path, BERT)
    assert model_of("bert", folder, **{"model.pooling": "mean"}) == SMALL.clone(pooling="mean")
    write(folder, BERT | {"model_type": "xlm-roberta"})
    settled = settle("roberta", folder, **{"model.pooling": "cls"})
    expected = SMALL.clone(pooling="cls", from_padding=True)
    assert build(settled.model.name, 1) == expected
    # Positions are numbered from the padding's number plus 1 on.
    assert entry_of(settled.model.name).inputs.size == 12 - 3


def test_options_in_the_name_go_before_those_of_the_file(tmp_path, capsys):
    folder = write(tmp_path, BERT)
    found = model_of("bert(pooling='cls', activation='relu')", folder)
    assert found == SMALL.clone(pooling="cls", activation="relu")
    said = capsys.readouterr().err
    assert f"activation='relu' as asked, although {folder}/config.json says activation='ge" in said


def test_a_settled_name_needs_no_file_and_settles_to_itself(tmp_path):
    folder = write(tmp_path, BERT)
    name = settle("bert", folder, **{"model.pooling": "cls"}).model.name
    assert settle(name).model.name == name
    assert settle(name, folder, **{"model.pooling": "cls"}).model.name == name
    write(folder, BERT | {"hidden_act": "relu"})
    assert settle(name, folder).model.name == name


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("bert", BERT | {"hidden_act": "gelu_10"}, "hidden_act: expected one of gelu, .*'gelu_10'"),
        ("bert", BERT | {"position_embedding_type": "relative_key"}, "type='relative_key' is not"),
        ("bert", BERT | {"is_decoder": True}, "is_decoder=True is not supported"),
        ("bert", BERT | {"embedding_size": 8}, "embedding_size=8 is not supported"),
        ("bert", BERT | {"auto_map": {"AutoModel": "m.M"}}, "auto_map=.* is not supported"),
        ("bert", BERT | {"hidden_size": "16"}, "hidden_size: expected a whole number.*'16'"),
        ("bert", BERT | {"num_hidden_layers": True}, "num_hidden_layers: expected a whole"),
        ("bert", BERT | {"num_attention_heads": 3}, "3 heads do not divide the width 16"),
        ("bert", BERT | {"model_type": "distilbert"}, "'distilbert' is no model of this package"),
        ("bert", BERT | {"model_type": "roberta"}, "expected model.name=roberta, found 'bert'"),
        ("vit", VIT | {"num_channels": 1}, "num_channels=1 is not supported"),
        ("vit", VIT | {"patch_size": [4, 8]}, "patch_size: expected a whole number"),
        ("vit", {"model_type": "siglip_vision_model", "vision_use_head": False}, "vision_use_head"),
        ("vit", {"model_type": "vit_mae"}, "'vit_mae' is no model"),
        ("resnet", {"model_type": "resnet", "hidden_act": "gelu"}, "hidden_act='gelu' is not"),
        ("resnet", {"model_type": "resnet", "downsample_in_first_stage": True}, "first_stage=True"),
        ("convnext", {"model_type": "convnext", "layer_norm_eps": 1e-3}, "layer_norm_eps: exp"),
        ("convnext", {"model_type": "convnext", "layer_scale_init_value": 0}, "scale_init_value"),
        ("resnet", {"model_type": "resnet", "depths": [1]}, "one number per layer in both"),
    ],
)
def test_settings_that_no_option_expresses_are_refused_by_name(tmp_path, name, values, message):
    with pytest.raises(UserError, match=message):
        settle(name, write(tmp_path, values), **{"model.pooling": "cls" if name == "bert" else ""})


def test_a_vit_gets_its_preprocessing_from_the_folder(tmp_path):
    folder = write(write(tmp_path, VIT), PREPROCESSING, "preprocessor_config.json")
    settled = settle("vit", folder)
    model = build(settled.model.name, 1)
    assert same(model, ViT(24, 2, 3, 4, 1, inner=48, qkv_bias=False))
    data = settled.data
    assert (data.image_size, data.crop, data.interpolation) == (16, 0.0, "bicubic")
    assert (data.mean, data.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    # Keys that the user sets stay as they are.
    assert settle("vit", folder, **{"data.mean": (0.5,) * 3}).data.mean == (0.5,) * 3
    crop = {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 16, "resample": 2}
    data = settle("vit", write(folder, PREPROCESSING | crop, "preprocessor_config.json")).data
    assert (data.image_size, data.crop, data.interpolation) == (16, 0.5, "bilinear")


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 1.0),
        ({"rescale_factor": 0.00392156862745098}, 1.0),
        ({"rescale_factor": 0.003921}, 1.0),
        ({"rescale_factor": 1 / 127.5}, 2.0),
        ({"do_rescale": False}, 255.0),
        ({"do_normalize": False, "rescale_factor": 1 / 127.5}, 2.0),
    ],
)
def test_another_scale_of_pixels_gives_the_same_normalised_pixels(tmp_path, changes, scale):
    folder = write(write(tmp_path, VIT), PREPROCESSING | changes, "preprocessor_config.json")
    data = settle("vit", folder).data
    pixel = np.array([10, 100, 250])
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.6])
    if "do_normalize" in changes:
        mean, std = np.zeros(3), np.ones(3)
    theirs = (pixel / 255 * scale - mean) / std
    np.testing.assert_allclose((pixel / 255 - data.mean) / data.std, theirs, rtol=1e-5)


@pytest.mark.parametrize(
    ("number", "name"), enumerate(("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"))
)
def test_the_filters_of_pillow_are_read_by_number(tmp_path, number, name):
    values = PREPROCESSING | {"resample": number}
    folder = write(write(tmp_path, VIT), values, "preprocessor_config.json")
    assert settle("vit", folder).data.interpolation == name
    image = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    ours = Image.fromarray(image).resize((4, 4), number)
    assert (resize(image, 4, name) == np.asarray(ours)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resample": 7}, "filter of Pillow, 0 to 5, found 7"),
        ({"rescale_factor": 0}, "rescale_factor: expected a number above 0, found 0"),
        ({"do_offset": True}, "do_offset: this model subtracts 1"),
    ],
)
def test_preprocessing_that_is_not_read_says_what_to_do(tmp_path, changes, message):
    folder = write(write(tmp_path, VIT), PREPROCESSING | changes, "preprocessor_config.json")
    with pytest.raises(UserError, match=message):
        settle("vit", folder)


def pooling_files(folder, mode, *, name="1_Pooling", more=()):
    """The files of sentence-transformers; a dict is written as it is."""
    values = mode
    if isinstance(mode, str):
        values = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": False,
                  "pooling_mode_cls_token": False, f"pooling_mode_{mode}": True}  # fmt: skip
    modules = [("", "Transformer"), (name, "Pooling"), *more]
    write(folder, [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ], "modules.json")  # fmt: skip
    return write(folder, values, f"{name}/config.json")


@pytest.mark.parametrize(
    ("mode", "pooling"),
    [
        ("cls_token", "cls"),
        ("mean_tokens", "mean"),
        ({"embedding_dimension": 16, "pooling_mode": "cls"}, "cls"),
        ({"embedding_dimension": 16, "pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_the_folder_of_the_weights_decides_the_pooling(tmp_path, capsys, mode, pooling):
    folder = pooling_files(write(tmp_path, BERT), mode)
    assert model_of("bert", folder).pooling == pooling
    assert (
        f"pooling='{pooling}': from {folder / '1_Pooling/config.json'}" in capsys.readouterr().err
    )
    # An entry of the registry does not silently keep another pooling than the folder's.
    (folder / "config.json").unlink()
    found = settle("minilm_l6", folder).model.name
    assert found == ("minilm_l6" if pooling == "mean" else "minilm_l6(pooling='cls')")
    assert build(found, 1).pooling == pooling


def test_a_pooling_that_is_asked_for_is_used_and_reported(tmp_path, capsys):
    folder = pooling_files(write(tmp_path, BERT), "cls_token")
    assert model_of("bert", folder, **{"model.pooling": "mean"}).pooling == "mean"
    assert "pooling='mean' as asked, although" in capsys.readouterr().err
    with pytest.raises(UserError, match="contradicts model.name"):
        settle("bert(pooling='cls')", folder, **{"model.pooling": "mean"})
    with pytest.raises(UserError, match="model.pooling: resnet18 has no choice of pooling"):
        settle("resnet18", **{"model.pooling": "mean"})
    with pytest.raises(UserError, match=r"pooling: expected one of .*found 'max'"):
        settle("bert_base_uncased", **{"model.pooling": "max"})


@pytest.mark.parametrize(
    "mode", ["max_tokens", "lasttoken", {"pooling_mode": ["cls", "mean"]}, {"other": 1}]
)
def test_another_pooling_is_refused_unless_one_is_chosen(tmp_path, mode):
    folder = pooling_files(write(tmp_path, BERT), mode)
    with pytest.raises(UserError, match=r"1_Pooling/config.json: the pooling .* is not supported"):
        settle("bert", folder)
    assert model_of("bert", folder, **{"model.pooling": "cls"}).pooling == "cls"


def test_old_layouts_and_further_modules_are_seen(tmp_path, capsys):
    pooling_files(tmp_path, "cls_token", name="Other_Pooling", more=[("3_Dense", "Dense")])
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    write(tmp_path, modules, "modules.json")
    folder = write(tmp_path / "0_Transformer", BERT)
    write(folder, {"max_seq_length": 9}, "sentence_bert_config.json")
    settled = settle("bert", folder)
    assert build(settled.model.name, 1).pooling == "cls" and settled.data.max_tokens == 9
    assert "the model here has no module Dense (3_Dense)" in capsys.readouterr().err
    (tmp_path / "Other_Pooling/config.json").unlink()
    with pytest.raises(UserError, match="no such file, and .*modules.json names it"):
        settle("bert", folder)


def test_an_entry_with_other_heads_than_the_file_is_refused(tmp_path, capsys):
    folder = write(tmp_path, {"model_type": "vit", "num_attention_heads": 6})
    with pytest.raises(UserError, match="vit_b16 has 12 attention heads, and .* says 6; model.nam"):
        settle("vit_b16", folder)
    write(folder, {"model_type": "vit", "hidden_act": "quick_gelu"})
    assert settle("vit_b16", folder).model.name == "vit_b16"
    assert "vit_b16 has activation='gelu', and" in capsys.readouterr().err
    # Epsilons of 1e-6 and 1e-12 give equal outputs.
    write(folder, {"model_type": "vit"})
    settle("vit_b16", folder)
    assert "warning" not in capsys.readouterr().err


SHAPES = [
    ("bert", SMALL.clone(activation="gelu", epsilon=1e-12, padding=0), "bert", "transformers", 12),
    ("roberta",
     SMALL.clone(activation="gelu", epsilon=1e-5, padding=1, from_padding=True), "roberta",
     "transformers_classifier", 8),
    ("vit", ViT(24, 2, 3, 4, 1, registers=2, positions="class", layer_scale=1e-5, inner=40), "vit",
     "timm", 16),
    ("vit", ViT(24, 1, 3, 4, 1, positions="patches", layer_scale=1e-5), "vit", "timm", 16),
    ("vit", ViT(24, 1, 3, 4, 1, pre_norm=True), "vit", "timm", 8),
    ("vit", ViT(24, 1, 3, 4, 1), "vit", "torchvision", 8),
    ("vit", ViT(24, 1, 3, 4, 1, pooling="map"), "vit", "timm", 8),
    ("vit", ViT(24, 1, 3, 4, 1, pooling="gap", class_token=True, norm_pooled=True), "vit",
     "timm_fc_norm", 8),
    ("resnet", ResNet((1, 2), False, 1, (8, 16), 8), "resnet", "torchvision", 32),
    ("resnet", ResNet((2, 1), True, 1, (32, 64), 8, groups=2, base_width=16), "resnet",
     "torchvision", 32),
    ("convnext", ConvNeXt((1, 2), (8, 12), 1), "convnext", "torchvision", 32),
    ("convnextv2_1x1", ConvNeXt((2, 1), (8, 12), 1, 2, 2), "convnextv2_1x1", "timm", 32),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "model", "family", "origin", "size"), SHAPES)
def test_shapes_give_the_sizes_of_a_file_without_a_config(
    tmp_path, kind, model, family, origin, size
):
    path, values = save(tmp_path, model, family, origin, size)
    if hasattr(model, "heads"):
        heads = f"model.name='{kind}\\(heads=…\\)'"
        with pytest.raises(UserError, match=f"but not the option heads, .*{heads}"):
            settle(kind, path)
    name = f"{kind}(heads={model.heads})" if hasattr(model, "heads") else kind
    settled = settle(name, path)
    found = build(settled.model.name, 1)
    assert same(found, model)
    assert settled.data.image_size == (size if kind == "vit" else 0)
    if origin == "torchvision":  # of the others, equal modules have equal leaves
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes(found, size))
        loaded, _ = load(path, family, zeros, found)
        assert tree.fingerprint(loaded) == tree.fingerprint(values)


def test_a_norm_after_the_pooling_is_not_taken_for_one_before_it(tmp_path):
    after = ViT(24, 1, 3, 4, 1, pooling="gap", class_token=True, norm_pooled=True)
    path, values = save(tmp_path, after, "vit", "timm_fc_norm", 8)
    for other in (ViT(24, 1, 3, 4, 1), after.clone(norm_pooled=False)):
        init = shapes(other, 8)
        with pytest.raises(UserError, match="normalises after .* pooling='gap', norm_pooled=True"):
            load(path, "vit", init, other, read_values=False)
        loaded, _ = load(path, "vit", init, other, name_map="timm_fc_norm")  # as the user says
        assert tree.fingerprint(loaded) == tree.fingerprint(values)
    before, _ = save(tmp_path, ViT(24, 1, 3, 4, 1), "vit", "timm", 8)
    with pytest.raises(UserError, match="normalises before .* options norm_pooled=False"):
        load(before, "vit", shapes(after, 8), after, read_values=False)
    # The norm of the class token alone is the same before and after it is taken.
    one = ViT(24, 1, 3, 4, 1, norm_pooled=True)
    for name, origin in (("a", "timm"), ("b", "timm_fc_norm")):
        (tmp_path / name).mkdir()
        file, values = save(tmp_path / name, one, "vit", origin, 8)
        assert tree.fingerprint(load(file, "vit", values, one)[0]) == tree.fingerprint(values)


def test_inspect_shows_the_sizes_that_no_registered_model_has(tmp_path):
    path, _ = save(tmp_path, ViT(24, 1, 3, 4, 1, pre_norm=True), "vit", "timm", 8)
    with open_weights(path) as weights:
        text = report(weights)
    assert "no registered model has these shapes; model.name='vit(class_token=True, dep" in text
    assert "depth=1, heads=…, inner=96," in text and "patch=4" in text and "width=24)' has" in text


def test_prefixes_of_wrappers_do_not_hide_the_sizes(tmp_path):
    path, _ = save(tmp_path, ResNet((1, 1), False, 1, (8, 16), 8), "resnet", "torchvision", 32)
    with open_weights(path) as weights:
        tensors = {f"module.backbone.{n}": weights.read(n) for n in weights.names()}
    save_file(tensors, path)
    assert same(model_of("resnet", path), ResNet((1, 1), False, 1, (8, 16), 8))


def test_a_network_that_shapes_do_not_show_is_refused(tmp_path):
    model = ResNet((1, 1), False, 1, (8, 16), 8)
    path, _ = save(tmp_path, model, "resnet", "torchvision", 32)
    write(tmp_path, {"architecture": "resnetblur18", "num_classes": 1})
    with pytest.raises(UserError, match="names timm's resnetblur18, and shapes do not show"):
        settle("resnet", path)
    write(tmp_path, {"architecture": "resnet18", "pretrained_cfg": {
        "input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9,
        "interpolation": "bilinear"}})  # fmt: skip
    data = settle("resnet", path).data
    assert (data.image_size, data.mean, data.crop) == (64, (0.5,) * 3, 0.9)
    with pytest.raises(UserError, match="no tensor has a name of the family 'bert'"):
        settle("bert", path)
    with open_weights(path) as weights:
        tensors = {n.replace("conv1", "conv1.0", n == "conv1.weight"): weights.read(n)
                   for n in weights.names()}  # fmt: skip
    save_file(tensors, path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="no single first convolution, as in a ResNet-D"):
        settle("resnet", path)


def test_a_text_encoder_without_a_pooler_asks_for_the_pooling(tmp_path):
    folder = write(tmp_path, BERT)
    save(folder, SMALL.clone(pooling="cls"), "bert", "transformers_without_pooler", 12)
    path = folder / "model.safetensors"
    with pytest.raises(UserError, match="has no pooler and its folder no pooling file.* cls or me"):
        settle("bert", path)
    assert model_of("bert", path, **{"model.pooling": "mean"}).pooling == "mean"
    save(folder, SMALL, "bert", "transformers", 12)
    assert model_of("bert", path) == SMALL


@pytest.fixture
def vit_folder(tmp_path):
    """A folder as transformers writes it, the model, and its values."""
    folder = write(write(tmp_path / "hub", VIT), PREPROCESSING, "preprocessor_config.json")
    model = ViT(24, 2, 3, 4, 1, inner=48, qkv_bias=False, epsilon=1e-12)
    path, values = save(folder, model, "vit", "transformers", 16)
    return path, model, values


def test_a_setup_has_the_sizes_and_the_preprocessing_of_the_folder(vit_folder):
    path, model, _ = vit_folder
    config = default()
    config.model.name, config.pretrained.path, config.scheme = "vit", str(path), "head"
    setup = open_setup(config)
    assert same(setup.model.clone(num_classes=1), model)
    assert (setup.preprocess.size, setup.preprocess.mean) == (16, (0.1, 0.2, 0.3))
    assert setup.config.model.name.startswith("vit(activation='gelu', ")
    assert config.model.name == "vit"


@pytest.mark.slow
def test_a_run_of_a_generic_model_keeps_its_sizes(vit_folder, tmp_path):
    path, model, values = vit_folder
    folder = path.parent
    config = default()
    config.model.name, config.pretrained.path, config.scheme = "vit", str(path), "head"
    config.data.train, config.data.validation, config.data.test = "train[:16]", "test[:8]", ""
    config.train.steps, config.train.batch_size, config.eval.batch_size = 1, 8, 8
    config.log.tensorboard = False
    train(open_setup(config), tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["model"]["name"].startswith("vit(activation='gelu', ")
    assert saved["data"]["mean"] == [0.1, 0.2, 0.3]
    # The same config names the same run, which is finished.
    assert train(open_setup(config), tmp_path / "run")["steps"] == 1
    for file in ("config.json", "preprocessor_config.json"):
        (folder / file).unlink()
    artifact = Artifact.load(tmp_path / "run")
    assert split(artifact.card["model"]["name"])[1]["heads"] == 3
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    images = (pixels / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.4, 0.5, 0.6])
    expected = model.apply(values, images.astype(np.float32), stop="head")
    found = artifact.model.apply(
        artifact.variables, artifact.preprocess.device({"image": pixels}), stop="head"
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bert", "bert has no sizes of its own: expected the options width, depth, heads"),
        ("bert(depth=2, heads=2)", "expected the option width"),
        ("bert(width=8, depth=1, heads=2, pool='cls')", "no option 'pool'. Did you mean 'pooling'"),
        ("bert(width=8.5, depth=1, heads=2)", r"bert\(width=…\): expected a whole number, found 8"),
        ("bert(width=8, depth=1, heads=2, padding=-1)", "expected a value from 0"),
        ("bert(width=8, depth=10**9, heads=2)", "cannot read"),
        ("bert(width=8, depth=9999, heads=2)", "from 1 to 1,000"),
        ("vit(width=9, depth=1, heads=2, patch=4)", "2 heads do not divide the width 9"),
        ("vgg16(width=3)", "vgg16 has no option 'width'"),
        ("bert(8)", "expected a name, or a name with options"),
        ("brt(width=3)", "unknown model 'brt'. Did you mean 'bert'"),
        ("resnet(depths=(1,), widths=8, bottleneck=True)", "expected positive integers"),
        ("resnet(depths=(1,), widths=(8,), bottleneck=1)", "expected a bool, found 1"),
    ],
)
def test_wrong_options_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        entry_of(settle(name).model.name)


def test_a_config_without_anything_to_settle_is_the_same():
    config = default()
    assert settle_model(config) is config
    assert to_json(config)["model"]["pooling"] == ""


def test_the_first_files_of_bert_do_not_name_their_type(tmp_path, capsys):
    old = {key: value for key, value in BERT.items() if key != "model_type"}
    folder = write(tmp_path, old, "bert_config.json")
    assert model_of("bert", folder, **{"model.pooling": "cls"}) == SMALL.clone(pooling="cls")
    assert "bert_config.json has no model_type; taken for bert" in capsys.readouterr().err
    # The config of a run of this package, or of another tool, is no description.
    write(folder, to_json(default()))
    assert model_of("bert", folder, **{"model.pooling": "cls"}) == SMALL.clone(pooling="cls")


def test_a_damaged_description_stops_only_those_who_need_it(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": ')
    assert settle("resnet18", tmp_path).model.name == "resnet18"
    assert "warning: not compared with the model: " in capsys.readouterr().err
    with pytest.raises(UserError, match=r"config\.json: not readable as JSON"):
        settle("vit", tmp_path)


def test_the_tokenizer_lies_in_the_folder_of_the_weights(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    assert _tokenizer_beside(folder / "model.safetensors") == folder / "tokenizer.json"
    assert _tokenizer_beside(folder) == folder / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_text("{}")
    assert _tokenizer_beside(folder) == tmp_path / "tokenizer.json"
    (folder / "tokenizer.json").write_text("{}")
    assert _tokenizer_beside(folder) == folder / "tokenizer.json"


def test_colours_other_than_those_of_the_weights_are_reported(tmp_path, capsys):
    folder = write(tmp_path, PREPROCESSING, "preprocessor_config.json")
    settle("vit_b16", folder)
    said = capsys.readouterr().err
    assert "images get mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5), and" in said
    assert "--config.data.mean='(0.1, 0.2, 0.3)' --config.data.std=" in said
    settle("vit_b16", folder, **{"data.mean": (0.1, 0.2, 0.3), "data.std": (0.4, 0.5, 0.6)})
    assert capsys.readouterr().err == ""


def test_colours_of_torchvision_are_reported(tmp_path, capsys):
    path, _ = save(tmp_path, ViT(24, 1, 3, 4, 1), "vit", "torchvision", 8)
    config = default()
    config.model.name, config.pretrained.path = "vit(heads=3)", str(path)
    setup = open_setup(config)
    load_variables(setup)
    assert "the names of the weights are torchvision's, whose mod" in capsys.readouterr().err
