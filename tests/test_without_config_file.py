"""A config from a few flags, a file that repeats it, and what is said about wrong config files."""

from __future__ import annotations

import pytest
from commands import run_command

from finetune_jax import cli, config_file
from finetune_jax.ablation.scheme_study import as_text, scheme_study, split_schemes
from finetune_jax.ablation.study import row_specs
from finetune_jax.ablation.study_file import load_study
from finetune_jax.config import default, from_json, to_json, validate
from finetune_jax.errors import UserError
from finetune_jax.files import read_json, write_json
from finetune_jax.models.spellings import CATALOGUE, published_source, spelled, unknown
from finetune_jax.pretrained.sizes.spelled import settle_name
from finetune_jax.size_defaults import config_for, source_of

SHIPPED = "package:resnet20_cifar10"


@pytest.mark.parametrize(
    ("scheme", "rate", "augment"),
    [
        ("linear_probe", 1e-2, ""),
        ("norm_only", 1e-2, ""),
        ("lora(rank=2) + head", 1e-2, ""),
        ("last_k(1)", 1e-3, "random_crop(pad=4)"),
    ],
)
def test_the_defaults_follow_what_trains_and_the_file_repeats_them(tmp_path, scheme, rate, augment):
    config = config_for("digits", "resnet20", SHIPPED, scheme, {"train.epochs": 2.0})
    assert (config.model.name, config.pretrained.path) == ("resnet20_cifar", SHIPPED)
    assert config.optimizer.learning_rate == rate
    assert config.data.augment == augment
    assert (config.train.batch_size, config.train.epochs) == (32, 2.0)
    # 1,077 training examples, 2 epochs of 32: a tenth of 67.3 steps
    assert config.optimizer.warmup_steps == 7
    assert config.pretrained.new_head
    config_file.write(tmp_path / "mine.py", config)
    assert to_json(cli.load_config(str(tmp_path / "mine.py"))) == to_json(config)
    config_file.write(tmp_path / "mine.py", config)  # the same text again
    with pytest.raises(UserError, match="is another; choose a new name"):
        config_file.write(tmp_path / "mine.py", default())


def test_a_few_examples_get_small_batches_and_more_epochs():
    given = {"data.train": "train[:40]"}
    config = config_for("digits", "resnet20", "none", "full", given)
    assert (config.train.batch_size, config.train.epochs) == (8, 25.0)
    assert config.pretrained.path == ""
    assert not config.pretrained.new_head
    given["optimizer.learning_rate"] = 0.5
    assert config_for("digits", "resnet20", "none", "full", given).optimizer.learning_rate == 0.5


def test_a_path_is_the_source_that_it_holds(tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "train.csv").write_text("text,label\n")
    for path, source in (("photos", "folder:"), ("tables", "csv:"), ("tables/train.csv", "csv:")):
        assert source_of(str(tmp_path / path)) == f"{source}{tmp_path / path}"
    assert source_of("tfds:cifar10") == "tfds:cifar10"
    with pytest.raises(UserError, match="expected a folder of images by class, a table"):
        source_of(str(tmp_path / "nothing"))


def test_schemes_become_rows_with_rates_of_their_own(tmp_path):
    schemes = split_schemes("linear_probe, lora(rank=2, on='query|value') + head; full")
    assert schemes == ["linear_probe", "lora(rank=2, on='query|value') + head", "full"]
    rates = dict(zip(schemes, (0.01, 5e-4, 1e-3), strict=True))
    specs = row_specs(scheme_study(rates), default())
    assert [spec.points[1]["optimizer.learning_rate"] for spec in specs] == [0.01, 5e-4, 1e-3]
    assert [len(spec.points) for spec in specs] == [3, 3, 3]
    config_file.write(tmp_path / "mine.py", default(), as_text(rates))
    assert row_specs(load_study(str(tmp_path / "mine.py")), default()) == specs
    for text in ("full", "full,full", ""):
        with pytest.raises(UserError, match="expected different schemes"):
            split_schemes(text)


@pytest.mark.parametrize(
    ("name", "model", "weights"),
    [
        ("vit_base_patch16_224", "vit_b16", ""),
        ("google/vit-base-patch16-224", "vit_b16", "hf:google/vit-base-patch16-224"),
        ("ViT-B/16", "vit_b16", ""),
        ("resnet20", "resnet20_cifar", ""),
        ("resnet-50", "resnet50", ""),
        ("mobilenet_v1", "mobilenetv1_100", ""),
        ("vit_b_16", "vit_b16_torchvision", ""),
        ("convnext-tiny", "convnext_tiny", ""),
        ("convnext_tiny.fb_in1k", "convnext_tiny", "hf:timm/convnext_tiny.fb_in1k"),
        ("bert-base-uncased", "bert_base_uncased", "hf:google-bert/bert-base-uncased"),
        ("facebook/dinov2-small", "dinov2_s14", "hf:facebook/dinov2-small"),
        ("dinov2_vits14_reg", "dinov2_s14_reg", ""),
        ("deit3_small_patch16_224", "deit3_s16", ""),
        ("resnetv2_50x1_bit", "bit_r50x1", ""),
    ],
)
def test_names_of_other_projects_are_ours(name, model, weights):
    found = spelled(name)
    assert found is not None
    assert (found.model, found.weights) == (model, weights)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50.a1_in1k", "model.name=resnet50 and pretrained.path=hf:timm/resnet50.a1_in1k"),
        ("microsoft/resnet-50", "pretrained.path=hf:microsoft/resnet-50"),
        ("ResNet50", "resnet50_keras with the weights of Keras, and resnet50 with those of timm"),
        ("vit_b17", "Did you mean 'vit_b16'?"),
    ],
)
def test_another_set_of_weights_is_never_taken(name, message):
    assert spelled(name) is None
    assert message in unknown(name)
    config = default()
    config.model.name = name
    with pytest.raises(UserError, match="unknown model"):
        settle_name(config)


def test_published_is_the_set_of_the_name_or_the_first_of_the_catalogue(capsys):
    config = default()
    config.pretrained.path = "published"
    for name, source in (
        ("google/vit-base-patch16-224", "hf:google/vit-base-patch16-224"),
        ("vit_b16", "hf:timm/vit_base_patch16_224.augreg_in21k_ft_in1k"),
    ):
        config.model.name = name
        assert settle_name(config).pretrained.path == source
        assert source in capsys.readouterr().err
    with pytest.raises(UserError, match="names no file for resnet20_cifar; download a file from"):
        published_source("resnet20_cifar")
    assert all(name == spelled(name).model for name in read_json(CATALOGUE))


def test_arguments_of_config_files_are_named():
    for name in ("quickstart:zzz", "quickstart.py:zzz"):
        with pytest.raises(UserError, match="takes no argument; found 'zzz' after the colon"):
            cli.load_config(name)


def test_an_empty_scheme_says_what_is_expected():
    config = default()
    config.scheme = ""
    with pytest.raises(UserError, match="scheme: expected what trains"):
        validate(config)


def test_the_config_of_a_run_is_a_config(tmp_path):
    config = default()
    config.train.steps = 7
    write_json(tmp_path / "config.json", to_json(config))
    assert to_json(cli.load_config(str(tmp_path / "config.json"))) == to_json(config)
    with pytest.raises(UserError, match="expected --config=.*config.json"):
        cli.load_config(str(tmp_path))
    write_json(tmp_path / "config.json", {**to_json(config), "seed": "x"})
    with pytest.raises(UserError, match="config.json: seed: expected"):
        cli.load_config(str(tmp_path / "config.json"))
    assert from_json(to_json(config)).train.steps == 7


def test_a_config_imports_its_sibling_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "shared_steps.py").write_text("STEPS = 3")
    (tmp_path / "a" / "own.py").write_text(
        "from shared_steps import STEPS\nfrom finetune_jax.config import default\n"
        "def get_config():\n  c = default()\n  c.train.steps = STEPS\n  return c"
    )
    monkeypatch.chdir(tmp_path)
    assert cli.load_config("a/own.py").train.steps == 3


@pytest.mark.slow
def test_one_command_trains_without_a_config_file_and_its_file_repeats_it(tmp_path):
    flags = ("--data=digits", "--model=resnet20", f"--weights={SHIPPED}", "--scheme=linear_probe")
    few = ("--config.train.steps=2", "--config.data.train=train[:64]")
    mine = tmp_path / "mine.py"
    places = (f"--workdir={tmp_path / 'a'}", f"--save_config={mine}")
    first = run_command("train", *flags, *few, *places)
    assert first.returncode == 0, first.stderr
    assert "10 classes: 0, 1, 2" in first.stderr
    again = run_command("train", f"--config={mine}", f"--workdir={tmp_path / 'b'}")
    assert again.returncode == 0, again.stderr
    configs = [(tmp_path / name / "config.json").read_text() for name in "ab"]
    assert configs[0] == configs[1]
    path = tmp_path / "a" / "config.json"
    third = run_command("train", f"--config={path}", f"--workdir={tmp_path / 'c'}")
    assert third.returncode == 0, third.stderr
    assert (tmp_path / "c" / "config.json").read_text() == configs[0]
    for command in ("plan", "suggest"):
        process = run_command(command, *flags, *few)
        assert process.returncode == 0, process.stderr
    process = run_command("plan", *flags, "--config.scheme=full")
    assert process.returncode == 2
    assert "set the same key; give one" in process.stderr
