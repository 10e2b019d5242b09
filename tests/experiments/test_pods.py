"""Configs for pods load and resolve, follow the published rules, and their tables run."""

import importlib
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from experiments import __main__ as listing
from experiments import glue_lora_bitfit, vtab_1k
from experiments.reproduction import Measured, set_aside
from finetune_jax import config as config_lib
from finetune_jax.cli import load_config
from finetune_jax.data.augment import parse_augment
from finetune_jax.data.source_planned import planned
from finetune_jax.data.sources import open_source
from finetune_jax.data.splits import resolve_split
from finetune_jax.errors import UserError
from finetune_jax.models import build, entry_of, initial_variables
from finetune_jax.schemes import lengths, resolve_phases
from finetune_jax.setup import open_setup
from finetune_jax.training.optimizer import make_rates

CONFIGS = sorted(path.stem for path in Path("configs/pods").glob("[!_]*.py"))


def _all(name):
    module = importlib.import_module(f"finetune_jax.configs.pods.{name}")
    return {a: load_config(f"configs/pods/{name}.py:{a}") for a in module.ARGUMENTS}


def _phases(config):
    entry = entry_of(config.model.name)
    size = config.data.max_tokens or config.data.image_size or entry.inputs.size
    options = {} if entry.tokens else {"image_size": size}
    model = build(config.model.name, 5, **options)
    abstract = initial_variables(model, size, stages=())
    return resolve_phases(
        config.scheme, model.stages, abstract["params"], abstract.get("batch_stats", {}),
        batch_norm=config.batch_norm, frozen_dropout="eval", decay=config.decay_mask,
    )  # fmt: skip


def test_there_are_configs():
    assert len(CONFIGS) == 6


@pytest.mark.parametrize("name", CONFIGS)
def test_every_argument_of_every_config_is_valid(name):
    configs = _all(name)
    assert load_config(f"configs/pods/{name}.py").to_json() in {
        config.to_json() for config in configs.values()
    }
    for argument, config in configs.items():
        config_lib.validate(config)
        parse_augment(config.data.augment)
        assert config.data.train != config.data.test, argument
        assert config.pretrained.path.startswith("hf:") and config.pretrained.new_head
        assert config.data.test or config.data.validation, argument


@pytest.mark.parametrize(
    "name",
    [
        # Many models of many sizes.
        pytest.param(name, marks=pytest.mark.slow) if name in ("bit_hyperrule", "vit_jax") else name
        for name in CONFIGS
    ],
)
def test_every_scheme_of_every_config_resolves_and_trains_the_head(name):
    seen = {}
    for config in _all(name).values():
        key = (config.scheme, config.model.name, config.data.image_size, config.data.max_tokens)
        seen.setdefault(key, config)
    for config in seen.values():
        for phase in _phases(config):
            assert {"head/kernel", "head/bias"} <= {*phase.plan.trainable}, config.scheme


@pytest.mark.parametrize(
    ("name", "classes"), [("ssf_cifar100", 100), ("vit_jax", 10), ("vtab", 100)]
)
def test_a_config_is_planned_without_its_data(name, classes, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config = load_config(f"configs/pods/{name}.py")
    with config.unlocked():
        config.data.source = planned(config.data.source, config.task.num_classes, 1000)
    setup = open_setup(config)
    assert setup.task.head_size == classes
    assert setup.examples("train") == sum(
        stop - start
        for _, start, stop in resolve_split(
            config.data.train, dict.fromkeys(("train", "validation", "test"), 1000)
        )
    )
    with pytest.raises(UserError, match="this data is planned only"):
        setup.source.read(config.data.train)


@pytest.mark.parametrize("rest", ["x", "0:3", "10", "10:", "10:abc", "-1:3"])
def test_what_is_planned_is_written_in_one_way(rest):
    with pytest.raises(UserError, match="data.source: expected"):
        open_source(f"planned:{rest}")


@pytest.mark.parametrize("name", CONFIGS)
def test_an_unknown_argument_is_refused_with_the_valid_ones(name):
    with pytest.raises(UserError, match="nonsense"):
        load_config(f"configs/pods/{name}.py:nonsense")


def test_a_wrong_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'cifar10'"):
        load_config("configs/pods/vit_jax.py:b16,cifar1")
    with pytest.raises(UserError, match="adapter of MNLI"):
        load_config("configs/pods/glue.py:rte,lora")


def test_targets_of_pods_are_what_their_configs_make():
    found, _ = listing.scripts()
    assert listing.run_tables() == [
        one.name for one in found if one.config.startswith("configs/pods/")
    ]
    of_pods = [one for one in found if one.config.startswith("configs/pods/")]
    assert sorted(Path(one.config).stem for one in of_pods) == CONFIGS
    for one in of_pods:
        if one.name == "vtab_1k":
            continue  # means of the figures of its config
        module = importlib.import_module(f"finetune_jax.configs.pods.{Path(one.config).stem}")
        assert {target.name for target in one.targets} <= {*module.ARGUMENTS}, one.name


@pytest.mark.parametrize(
    ("examples", "side", "expected"),
    [
        (1_020, 500, (500, 100, (512, 480), 0.0)),
        (19_999, 95, (500, 100, (160, 128), 0.0)),
        (20_000, 96, (10_000, 500, (512, 480), 0.1)),
        (50_000, 32, (10_000, 500, (160, 128), 0.1)),
        (499_999, 224, (10_000, 500, (512, 480), 0.1)),
        (500_000, 224, (20_000, 500, (512, 480), 0.1)),
    ],
)
def test_the_hyperrule(examples, side, expected):
    from finetune_jax.configs.pods.bit_hyperrule import hyperrule

    assert hyperrule(examples, side) == expected


def test_the_hyperrule_refuses_nothing_to_train_on():
    from finetune_jax.configs.pods.bit_hyperrule import hyperrule

    with pytest.raises(UserError, match="found 0"):
        hyperrule(0, 32)


@pytest.mark.parametrize(
    ("steps", "warmup", "decays"),
    [
        (500, 100, (200, 300, 400)),
        (10_000, 500, (3_000, 6_000, 9_000)),
        (20_000, 500, (6_000, 12_000, 18_000)),
    ],
)
def test_the_rate_falls_where_the_hyperrule_says(steps, warmup, decays):
    from finetune_jax.configs.pods.bit_hyperrule import staircase

    config = load_config("configs/pods/bit_hyperrule.py:r50x1,cifar10")
    config.model.name, config.data.image_size = "bit_r50x1", 32
    config.scheme = staircase(steps)
    config.optimizer.warmup_steps = warmup
    phases = _phases(config)
    counts = lengths(phases, steps, 100.0)
    assert sum(counts) == steps

    def rate(step):
        index = next(i for i in range(len(counts)) if step < sum(counts[: i + 1]))
        phase, count, start = phases[index], counts[index], sum(counts[:index])
        rates = make_rates(config.optimizer, phase, start, count)
        hyper = {
            "learning_rate": jnp.asarray(0.003),
            "leaf_lr": phase.plan.of_trainable("lr"),
        }
        return float(rates(step, hyper)["head"]["kernel"])

    assert rate(0) == 0
    assert rate(warmup // 2) == pytest.approx(0.0015, rel=1e-5)
    for step in (warmup, *(d + e for d in decays for e in (-1, 0, 1)), steps - 1):
        passed = sum(step >= decay for decay in decays)
        assert rate(step) == pytest.approx(0.003 * 0.1**passed, rel=1e-5), step


def test_splits_of_vtab_are_apart_and_of_a_thousand_examples():
    sizes = {
        "cifar100": 50_000, "caltech101": 3_059, "oxford_iiit_pet": 3_680, "svhn_cropped": 73_257,
        "eurosat/rgb": 27_000, "resisc45": 31_500,
    }  # fmt: skip
    # Per cent of the training split that task_adaptation trains on; validation begins after them.
    shares = {
        "cifar100": 90, "caltech101": 90, "oxford_iiit_pet": 80, "svhn_cropped": 90,
        "eurosat/rgb": 60, "resisc45": 60,
    }  # fmt: skip
    from finetune_jax.configs.pods.vtab import TASKS

    from finetune_jax.data.splits import resolve_split

    assert len(TASKS) == 14
    for name, _, train, validation, test in TASKS.values():
        splits = {k: sizes.get(name, 20_000) for k in ("train", "validation", "test")}
        parts = [resolve_split(text, splits)[0] for text in (train, validation, test)]
        assert [stop - start for _, start, stop in parts[:2]] == [800, 200]
        if name in shares:
            assert parts[1][1] == round(sizes[name] * shares[name] / 100), name
        for i, (split, start, stop) in enumerate(parts):
            for other, begin, end in parts[i + 1 :]:
                assert split != other or stop <= begin or end <= start, name


def test_tuning_on_vtab_reads_no_test_split_and_the_last_run_no_validation():
    tune = load_config("configs/pods/vtab.py:eurosat,lora,tune").data
    final = load_config("configs/pods/vtab.py:eurosat,lora,final").data
    assert tune.test == "" and final.validation == ""
    assert final.train == f"{tune.train}+{tune.validation}" and final.test == "train[80%:]"


def test_means_of_vtab_follow_from_the_published_rows():
    # Figures that the papers print.
    printed = {
        ("full", "mean of natural"): 75.88, ("full", "mean of specialized"): 83.36,
        ("full", "mean of structured"): 47.64, ("full", "mean of group means"): 68.9,
        ("adapter", "mean of group means"): 73.9, ("lora", "mean of group means"): 74.5,
        ("linear", "mean of group means"): 57.6, ("ssf", "mean of group means"): 75.69,
        ("vpt_deep", "mean of group means"): 72.0, ("lora", "mean of 19 tasks"): 72.25,
        ("ssf", "mean of 19 tasks"): 73.10,
    }  # fmt: skip
    found = vtab_1k.published()
    for (scheme, name), value in printed.items():
        assert found[scheme][name] == pytest.approx(value, abs=0.11), (scheme, name)


def test_the_two_averages_of_vtab_differ_and_need_every_task():
    from finetune_jax.configs.pods.vtab import GROUPS

    tasks = {group: list(names) for group, names in GROUPS.items()}
    assert [len(names) for names in tasks.values()] == [7, 4, 8]
    scores = {
        name: value
        for names, value in zip(tasks.values(), (1.0, 2.0, 6.0), strict=True)
        for name in names
    }
    means = vtab_1k.group_means(scores, tasks)
    assert means["mean of group means"] == pytest.approx(3.0)
    assert means["mean of 19 tasks"] == pytest.approx((7 + 8 + 48) / 19)
    del scores["kitti"]
    assert vtab_1k.group_means(scores, tasks) == {"mean of natural": 1, "mean of specialized": 2}


_CONFIG = """
from finetune_jax.config import default

def get_config(argument):
    config = default()
    config.scheme = "linear_probe"
    config.pretrained.path = "package:resnet20_cifar10"
    config.pretrained.new_head = True
    config.data.source = {"here": "digits", "nowhere": "tfds:cifar10"}[argument]
    config.data.image_size = 8
    config.train.steps = 20
    config.optimizer.learning_rate = 0.1
    config.log.tensorboard = False
    return config
"""
_SCRIPT = """
import sys
from pathlib import Path
from experiments import run_table
from experiments.reproduction import Measured, Reproduction, RunTable, Target
from finetune_jax.cli import run

folder = Path(sys.argv.pop())
one = Reproduction(
    "tiny", "paper", "claim",
    tuple(Target(name, 50, "within", 50.0, source="s") for name in ("a", "b", "c", "twice a")),
    "hardware", "hazards", "command", config=str(folder / "config.py"),
)
table = RunTable(
    one, {"a": "here", "b": "nowhere", "c": "here"}, {"c": "matthews"},
    lambda found: {"twice a": Measured(found["a"].value * 2)} if "a" in found else {},
)
run(lambda _: run_table.run_table(table, folder / "result"))
"""


def test_figures_of_vtab_are_averaged_by_scheme():
    from finetune_jax.configs.pods.vtab import GROUPS, TASKS

    arguments = vtab_1k.TABLE.arguments
    assert arguments["eurosat,lora"] == "eurosat,lora,final"
    assert len(arguments) == 7 * len(TASKS)
    found = {
        f"{task},{scheme}": Measured(value, seeds=seeds)
        for scheme, value in (("lora", 50.0), ("full", 70.0))
        for task, seeds in zip(GROUPS["natural"], range(3, 10), strict=True)
    }
    del found[f"{list(GROUPS['natural'])[-1]},full"]
    means = vtab_1k.TABLE.derived(found)
    assert means == {"lora, mean of natural": Measured(50.0, seeds=3)}


def test_scores_of_glue_are_those_of_the_published_tables():
    metrics = glue_lora_bitfit.TABLE.metrics
    assert metrics.keys() == {target.name for target in glue_lora_bitfit.REPRODUCTION.targets}
    assert metrics["cola,lora"] == "matthews" and metrics["sst2,bitfit"] == "accuracy"
    assert metrics["stsb,full_roberta"] == "pearson" and metrics["stsb,bitfit"] == "spearman"


def test_run_finds_the_table_of_its_name():
    assert listing.find_table(["vtab_1k"]) is vtab_1k.TABLE
    with pytest.raises(UserError, match="Did you mean 'vtab_1k'"):
        listing.find_table(["vtab"])
    with pytest.raises(UserError, match="expected one name"):
        listing.find_table([])
    with pytest.raises(UserError, match="no table of runs 'lp_ft'"):
        listing.find_table(["lp_ft"])


@pytest.mark.slow
def test_a_table_runs_what_is_there_and_says_what_the_rest_needs(tmp_path):
    import json

    (tmp_path / "config.py").write_text(_CONFIG)

    def run(*flags):
        common = [f"--workdir={tmp_path / 'runs'}", f"--data_dir={tmp_path}"]
        return subprocess.run(
            [sys.executable, "-c", _SCRIPT, *common, *flags, str(tmp_path)],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    nothing = run("--seeds=2", "--only=b")
    assert nothing.returncode != 0 and "not run (needs data tfds:cifar10" in nothing.stderr
    assert not (tmp_path / "result").exists()
    assert "Did you mean 'a'" in (wrong := run("--only=aa")).stderr and wrong.returncode == 2

    done = run("--seeds=2")
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "result" / "result.json").read_text())
    a, b, c, twice = result["rows"]
    assert b["verdict"] == "not run (needs data tfds:cifar10)"
    assert a["found"]["seeds"] == 2 and a["found"]["n"] == 360
    trained = [
        json.loads((tmp_path / "runs/tiny/here" / str(seed) / "result.json").read_text())
        for seed in (0, 1)
    ]
    mean = 50 * sum(one["test"]["accuracy"] for one in trained)
    assert a["found"]["value"] == pytest.approx(mean, abs=1e-9)
    assert twice["found"]["value"] == pytest.approx(2 * mean, abs=1e-9)
    # For ten classes of equal size, Matthews correlation is about (accuracy - 1/10) / (1 - 1/10).
    assert c["found"]["value"] == pytest.approx((mean - 10) / 0.9, abs=3)
    assert result["seconds"] == pytest.approx(sum(one["seconds"] for one in trained))
    assert result["command"] == "python -m experiments run tiny --seeds=2"

    again = run("--seeds=2", "--only=b,c")
    assert again.returncode == 0 and "compiling the train step" not in again.stdout
    repeated = json.loads((tmp_path / "result" / "result.json").read_text())
    assert repeated["rows"][0]["found"] == a["found"], "a run that has ended counts"
    assert repeated["seconds"] == result["seconds"]
    assert repeated["command"].endswith("--seeds=2 --only=b,c")


def test_folders_of_another_length_are_set_aside_and_kept(tmp_path):
    for number in range(2):
        (tmp_path / "0").mkdir()
        (tmp_path / "0" / "config.json").write_text(str(number))
        set_aside(tmp_path / "0")
    aside = [tmp_path / f"0_of_another_length{n}" / "config.json" for n in ("", "_2")]
    assert [path.read_text() for path in aside] == ["0", "1"] and not (tmp_path / "0").exists()
