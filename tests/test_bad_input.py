"""Bad input ends with status 2, one readable message, and nothing half-written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from commands import ONE_DEVICE, ROOT, run_command

from finetune_jax import cli
from finetune_jax.base_variables import load_variables
from finetune_jax.config import default, validate
from finetune_jax.data.images import decode
from finetune_jax.data.listing import FileList
from finetune_jax.data.sources import open_source
from finetune_jax.disk import disk_trouble
from finetune_jax.errors import UserError
from finetune_jax.pretrained import open_weights, save_native
from finetune_jax.setup import open_setup
from finetune_jax.training.folder import lock_workdir
from finetune_jax.training.loop import train


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.scheem=full"], "no config key 'scheem'. Did you mean 'scheme'?"),
        (["--config.xyzzy=1"], "no config key 'xyzzy'; --help=config lists all keys"),
        (["--config.train.batch_size=many"], "batch_size"),
        (["--config.optimizer.nane=sgd"], "no config key 'nane'. Did you mean 'name'?"),
    ],
)
def test_a_bad_flag_is_named_without_a_traceback(small_config, tmp_path, overrides, message):
    workdir = tmp_path / "run"
    process = run_command("train", f"--config={small_config}", f"--workdir={workdir}", *overrides)
    assert process.returncode == 2
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert not workdir.exists()


def test_a_user_error_of_a_command_has_no_traceback(small_config, tmp_path):
    process = run_command(
        "train",
        f"--config={small_config}",
        f"--workdir={tmp_path / 'run'}",
        "--config.scheme=linear_prob",
    )
    assert process.returncode == 2
    assert "Did you mean 'linear_probe'" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such config file: {folder}/smal.py. Did you mean '{folder}/small.py'?"),
        ("def get_config(:", "{folder}/smal.py, line 1: SyntaxError"),
        (
            "from finetune_jax.config import default\ndef get_config():\n  default().scheem = 1",
            "line 3: no config key 'scheem'. Did you mean 'scheme'?",
        ),
    ],
)
def test_a_config_file_that_cannot_be_read_is_named_in_one_line(
    small_config, tmp_path, content, message
):
    shutil.copy(small_config, tmp_path / "small.py")
    if content:
        (tmp_path / "smal.py").write_text(content)
    process = run_command(
        "train", f"--config={tmp_path / 'smal.py'}", f"--workdir={tmp_path / 'run'}"
    )
    assert process.returncode == 2
    error, hint = process.stderr.strip().splitlines()
    assert message.format(folder=tmp_path) in error
    assert hint == "see: python -m finetune_jax.train --help"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scheme", "[('hed/.*', 'a'), ('.*', 'frozen')]", "matches no leaf"),
        ("scheme", "[('head/.*', 'a')]", "no rule matches"),
        ("data.source", "digts", "Did you mean 'digits'"),
        ("data.source", "tfds:cifar_10", "Did you mean 'cifar10'"),
        ("data.source", "tfds:cifar10", "is not prepared in"),
        ("data.augment", "flop", "Did you mean 'flip'"),
        ("model.name", "resnet20_cifr", "Did you mean 'resnet20_cifar'"),
        ("model.dtype", "float16", "unknown dtype"),
        ("model.dropout", 0.1, "has no dropout"),
        ("task.num_classes", 7, "the head would have 7 classes, but 'digits' has 10"),
        ("optimizer.learning_rate", 0.0, "use the scheme"),
        ("optimizer.name", "adam", "Did you mean 'adamw'"),
        ("batch_norm", "freeze", "Did you mean 'frozen'"),
        ("train.accumulate", 3, "does not divide"),
        ("mesh.data", 3, "number of devices"),
        ("checkpoint.metric", "acuracy", "Did you mean 'accuracy'"),
        ("checkpoint.keep_last", 0, "at least 1, found 0"),
        ("checkpoint.keep_best", -1, "at least 0, found -1"),
        ("checkpoint.every_steps", -1, "at least 0, found -1"),
        ("log.every_steps", -1, "at least 0, found -1"),
        ("eval.every_epochs", 0.0, "expected a number > 0, found 0.0"),
        ("optimizer.weight_decay", -0.1, "expected a number >= 0, found -0.1"),
        ("optimizer.clip_norm", -1.0, "expected a number >= 0, found -1.0"),
        ("optimizer.warmup_steps", -1, "at least 0, found -1"),
        ("artifact.contents", "delta", "pretrained.path is empty"),
    ],
)
def test_a_bad_value_is_refused_before_any_compile(tmp_path, key, value, message):
    config = default()
    config.data.data_dir = str(tmp_path)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as error:
        open_setup(config)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.validation", "", "data.validation is empty"),
        ("checkpoint.keep_best", 0, "checkpoint.keep_best of at least 1"),
    ],
)
def test_the_best_checkpoint_needs_scores_to_be_kept_by(key, value, message):
    config = default()
    config.artifact.select = "best"
    validate(config)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        validate(config)


def test_an_unknown_split_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'validation'"):
        open_source("digits").read("valdation")


def experiment_with(path, scheme="linear_probe", new_head=False):
    config = default()
    config.scheme = scheme
    config.model.name = "resnet8_cifar"
    config.pretrained.path = str(path)
    config.pretrained.new_head = new_head
    return open_setup(config)


def edited(weights, tmp_path, edit):
    with open_weights(weights) as file:
        flat = {name: file.read(name) for name in file.names()}
    edit(flat)
    from finetune_jax import tree

    path = tmp_path / "edited.safetensors"
    save_native(path, tree.unflatten(flat), {})
    return path


def test_a_missing_weight_file_names_its_neighbour(weights):
    with pytest.raises(UserError, match="Did you mean 'resnet8.safetensors'"):
        load_variables(experiment_with(weights.with_name("resnet2O.safetensors")))


def test_a_mistyped_weight_file_does_not_claim_the_workdir(weights, tmp_path):
    config = default()
    config.model.name = "resnet8_cifar"
    config.data.image_size = 16
    config.data.train, config.data.validation, config.data.test = "train[:16]", "", ""
    config.train.batch_size, config.train.steps = 16, 1
    config.log.tensorboard = False
    config.pretrained.path = str(weights.with_name("resnet2O.safetensors"))
    with pytest.raises(UserError, match="Did you mean"):
        train(open_setup(config), tmp_path)
    config.pretrained.path = str(weights)
    assert train(open_setup(config), tmp_path)["steps"] == 1
    # Now the folder belongs to the config.
    config.seed = 1
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        train(open_setup(config), tmp_path)


def test_a_truncated_weight_file_is_named(weights, tmp_path):
    path = tmp_path / "short.safetensors"
    path.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="short.safetensors"):
        load_variables(experiment_with(path))


def test_renamed_and_wrong_shape_tensors_are_all_reported(weights, tmp_path):
    def edit(flat):
        flat["params/stem/conv/kernle"] = flat.pop("params/stem/conv/kernel")
        flat["params/layer1_block0/norm1/bias"] = np.zeros(3, np.float32)

    with pytest.raises(UserError) as error:
        load_variables(experiment_with(edited(weights, tmp_path, edit)))
    message = str(error.value)
    assert "params/stem/conv/kernle" in message
    assert "params/stem/conv/kernel" in message
    assert "params/layer1_block0/norm1/bias" in message
    assert "(3,)" in message
    assert "(16,)" in message


def test_a_new_head_must_train(weights):
    with pytest.raises(UserError, match="add ' \\+ head'"):
        load_variables(experiment_with(weights, scheme="stages('stem')", new_head=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"not an image", "not an image"), (None, "no such image file")],
)
def test_a_corrupt_image_is_named(tmp_path, content, message):
    path = tmp_path / "picture.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        decode(path)
    assert "picture.jpg" in str(error.value)


def test_a_truncated_image_is_named(tmp_path):
    from PIL import Image

    path = tmp_path / "cut.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match="cut.png: damaged"):
        decode(path)


def test_an_unwritable_workdir_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there"):
        lock_workdir(tmp_path / "file" / "run")
    shutil.rmtree(tmp_path)


def test_the_quickstart_removes_only_what_it_made(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "result.json").write_text("mine")
    process = run_command("quickstart", "--config=configs/quickstart.py", f"--workdir={tmp_path}")
    assert process.returncode == 2
    assert "full was not made by the quickstart" in process.stderr
    assert (tmp_path / "full" / "result.json").read_text() == "mine"


@pytest.mark.parametrize(
    "command",
    [
        ("finetune_jax.train", "--help"),
        ("finetune_jax", "--help"),
        ("finetune_jax.models",),
        pytest.param(("experiments",), marks=pytest.mark.slow),
    ],
)
def test_a_closed_pipe_is_no_error(command):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", *command]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_ctrl_c_ends_a_run_without_a_traceback(small_config, tmp_path):
    # A shell ignores the signal in its background jobs, and a process inherits that.
    code = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "runpy.run_module('finetune_jax.train', run_name='__main__', alter_sys=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, f"--config={small_config}", f"--workdir={tmp_path / 'run'}",
         "--config.train.steps=100000"],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": ONE_DEVICE}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("step 3/"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 130, "".join(seen) + rest
    assert "interrupted" in rest and "Traceback" not in rest


def test_an_argument_that_is_not_utf_8_is_named():
    command = [sys.executable, "-m", "finetune_jax.train", b"--workdir=run\xff"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: the argument '--workdir=run\\udcff' is not UTF-8\n"


def test_a_file_name_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / os.fsdecode(b"picture\xff.png")
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"picture.*udcff.png': the name of this file is not UTF-8"):
        FileList.of(tmp_path, {"picture": path})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device", "/a/b"), "/a/b: No space left on device"),
        (OSError(122, "Disk quota exceeded"), "Disk quota exceeded"),
        (ValueError("RESOURCE_EXHAUSTED: Error writing local file \"/a/b\": No space left on "
                    "device [os_error_code='28']"), "/a/b: No space left on device"),
        (ValueError("NOT_FOUND: Error reading local file \"/a/b\""),
         "/a/b: No such file or directory"),
        (ValueError("Save failed: 7/9 params are missing .zarray in checkpoint:\nstate.x\n"
                    "KvStore({'path': '/a/b'})"), "/a/b: No such file or directory"),
        (ExceptionGroup("several", [ValueError("x"), OSError(30, "", "/a")]),
         "/a: Read-only file system"),
        (ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 3 bytes"), None),
        (ValueError("expected 3"), None),
        (UserError("/a: No space left on device"), None),
    ],
)  # fmt: skip
def test_trouble_of_the_disk_is_recognised(error, expected):
    assert disk_trouble(error) == expected
    try:
        try:
            raise error
        except Exception:
            raise RuntimeError("while saving")  # noqa: B904
    except RuntimeError as later:
        assert disk_trouble(later) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("lr", "no config key 'lr'. Did you mean 'optimizer.learning_rate'?"),
        (
            "batch_size",
            "no config key 'batch_size'. Did you mean 'eval.batch_size' or 'train.batch_size'?",
        ),
        (
            "flag --config.train.steps=1e3: invalid literal for int() with base 10: '1e3'",
            "flag --config.train.steps: expected a whole number, such as 1000, found '1e3'",
        ),
        (
            "flag --config.model.remat=yes: ('Non-boolean argument to boolean flag', 'yes')",
            "flag --config.model.remat: expected True or False, found 'yes'",
        ),
    ],
)
def test_what_libraries_say_about_a_flag_becomes_a_sentence(given, message):
    assert cli._key(given) == message


@pytest.mark.parametrize("name", ["config.yaml", "config.toml"])
def test_the_message_about_a_config_that_is_no_python_file_says_what_a_config_is(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="expected a Python file with a function get_config"):
        cli.load_config(str(tmp_path / name))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("config.seed = 1", "get_config returns nothing; expected the config that"),
        ("return {}", "get_config returns a dict; expected the config that"),
        ("config.train.lr = 1", "line 4: no config key 'lr'. Did you mean 'optimizer.learning_ra"),
    ],
)
def test_a_config_function_that_is_wrong_says_what_is_expected(tmp_path, body, message):
    path = tmp_path / "mine.py"
    path.write_text(
        "from finetune_jax.config import default\n"
        f"def get_config():\n    config = default()\n    {body}\n"
    )
    with pytest.raises(UserError) as error:
        cli.load_config(str(path))
    assert message in str(error.value)


def test_a_config_without_its_flag_is_recognised():
    missing = "flag --config=None: Flag --config must have a value other than None."
    assert cli._key(missing).startswith("expected --config=NAME of a config or of its file")
    assert cli._meant(missing, ["train", "mine.py", "--workdir=x"]).endswith("--config=mine.py?")
    assert cli._meant(missing, ["train", "quickstart"]).endswith("--config=quickstart?")
    assert cli._meant(missing, ["train"]) == ", such as --config=quickstart"
    assert cli._meant("flag --workdir=None: Flag", ["train", "mine.py"]) == ""


@pytest.mark.parametrize("source", ["folder", "csv"])
def test_segmentation_without_masks_says_where_masks_are_read_from(tmp_path, source):
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name / f"{i}.png")
    rows = "".join(f"{'ab'[i % 2]}/{i // 2}.png,{'ab'[i % 2]}\n" for i in range(20))
    (tmp_path / "t.csv").write_text(f"image,label\n{rows}")
    config = default()
    config.data.source = f"{source}:{tmp_path}{'/t.csv' if source == 'csv' else ''}"
    config.task.name = "segmentation"
    with pytest.raises(UserError, match=r"data.mask_column: the model reads 'mask'.*tfds: and hf:"):
        open_setup(config)


def test_an_image_size_between_two_multiples_of_the_patch_names_both():
    config = default()
    config.model.name, config.data.image_size = "vit_ti8", 36
    with pytest.raises(UserError, match=r"data.image_size: 36 is not a multiple of 8.*32 or 40"):
        open_setup(config)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("data.augment", "random_crop("),
        ("optimizer.schedule", "onecycle(pct=3)"),
        ("optimizer.schedule", "fast"),
        ("eval.probes", "knn(3) + knn(3)"),
        ("eval.probes", "knn("),
        ("task.loss", "focal(("),
        ("scheme", "head("),
        ("scheme", "lora(rank=-1)"),
        ("scheme", "head + phase(schedule='fast')"),
    ],
)
def test_a_text_in_a_small_language_is_refused_with_its_key(key, text):
    config = default()
    config.update_from_flattened_dict({"model.name": "resnet8_cifar", key: text})
    with pytest.raises(UserError) as error:
        open_setup(config)
    assert str(error.value).startswith(f"{key}: ")


def test_a_file_without_a_head_says_which_flag_makes_a_new_head(weights, tmp_path):
    def edit(flat):
        del flat["params/head/kernel"], flat["params/head/bias"]

    headless = edited(weights, tmp_path, edit)
    with pytest.raises(UserError, match=r"--config\.pretrained\.new_head=True draws new values"):
        load_variables(experiment_with(headless))
    _, manifest = load_variables(experiment_with(headless, new_head=True))
    new = [row["leaf"] for row in manifest["rows"] if row["decision"] == "reinitialised"]
    assert new == ["params/head/bias", "params/head/kernel"]
