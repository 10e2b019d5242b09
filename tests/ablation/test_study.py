"""Rows, points and arms of a study."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_jax.ablation.arm import apply_overrides, make_arm
from finetune_jax.ablation.axes import chain, over, product, zipped
from finetune_jax.ablation.study import Study, row_specs
from finetune_jax.ablation.study_file import load_study
from finetune_jax.config import default
from finetune_jax.errors import UserError


@given(st.lists(st.integers(), max_size=4), st.lists(st.text(), max_size=4))
def test_a_product_has_every_pair_once_and_in_order(first, second):
    found = product(over("a", first), over("b", second))
    assert [(row["a"], row["b"]) for row in found] == [(x, y) for x in first for y in second]


def test_axes_combine():
    assert zipped(over("a", [1, 2]), over("b", [3, 4])) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert chain(over("a", [1]), over("b", [2])) == [{"a": 1}, {"b": 2}]
    assert product(({"a": n} for n in range(2)), [{}]) == [{"a": 0}, {"a": 1}]
    with pytest.raises(UserError, match="set a"):
        product(over("a", [1]), over("a", [2]))
    with pytest.raises(UserError, match="1, 2"):
        zipped(over("a", [1]), over("b", [2, 3]))


def test_an_arm_reads_no_test_split_and_is_named_by_its_config():
    base = default()
    arm = make_arm(base, "r", {"scheme": "head"}, {"optimizer.learning_rate": 0.5}, 3)
    assert arm.config["data"]["test"] == "" and base.data.test == "test"
    assert arm.config["seed"] == 3 and arm.config["optimizer"]["learning_rate"] == 0.5
    # The name of a row is not part of the key of an arm; every value of the config is.
    assert arm.key == make_arm(base, "s", {"scheme": "head", **arm.point}, {}, 3).key
    others = [
        make_arm(base, "r", {"scheme": "head"}, {"optimizer.learning_rate": 0.5}, 4),
        make_arm(base, "r", {"scheme": "head"}, {"optimizer.learning_rate": 0.6}, 3),
        make_arm(base, "r", {"scheme": "full"}, {"optimizer.learning_rate": 0.5}, 3),
        make_arm(base, "r", {"scheme": "head"}, {"optimizer.learning_rate": 0.5}, 3, 0.5),
    ]
    assert len({arm.key, *(other.key for other in others)}) == 5


def test_a_share_shortens_epochs_or_steps():
    base = default()
    assert make_arm(base, "r", {}, {}, 0, 0.25).config["train"]["epochs"] == 2.5
    base.train.steps = 10
    assert make_arm(base, "r", {}, {}, 0, 0.25).config["train"]["steps"] == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer.learnin_rate": 1.0}, "optimizer.learning_rate"),
        ({"optimiser.learning_rate": 1.0}, "optimizer"),
        ({"seed.more": 1}, "seed.more"),
        ({"train.batch_size": "many"}, "train.batch_size='many'"),
    ],
)
def test_wrong_overrides_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        apply_overrides(default(), values)


def test_rows_with_other_data_are_in_a_table_of_their_own():
    rows = product(
        [{"data.source": "folder:a", "data.train": "train"}, {"data.source": "folder:b"}],
        over("scheme", ["head", "full"]),
    )
    specs = row_specs(Study(rows=rows), default())
    assert [spec.table for spec in specs] == ["folder:a", "folder:a", "folder:b", "folder:b"]
    assert [spec.label for spec in specs] == ["head", "full"] * 2
    assert len({spec.name for spec in specs}) == 4
    sizes = product(over("data.train", ["train[:9]", "train[:99]"]), over("scheme", ["head"]))
    tables = [spec.table for spec in row_specs(Study(rows=sizes), default())]
    assert tables == ["train=train[:9]", "train=train[:99]"]


def test_a_control_has_as_many_scalars_as_the_scheme_and_stands_beside_it():
    study = Study(rows=over("scheme", ["linear_probe", "norm_only", "lp_ft"]), control=True)
    labels = [spec.label for spec in row_specs(study, default())]
    assert labels == ["linear_probe", "norm_only", "lp_ft", "random_mask('norm_only')"]


def test_points_may_depend_on_the_row_but_not_their_number():
    def tune(row):
        key = "optimizer.learning_rate" if row["scheme"] == "full" else "optimizer.weight_decay"
        return over(key, [0.1, 0.2])

    rows = over("scheme", ["full", "head"])
    first, second = row_specs(Study(rows=rows, tune=tune), default())
    assert first.points[0] == {"optimizer.learning_rate": 0.1}
    assert second.points[1] == {"optimizer.weight_decay": 0.2}
    with pytest.raises(UserError, match="full: 1, head: 2"):
        row_specs(
            Study(rows=rows, tune=lambda row: [{}] * (1 + (row["scheme"] == "head"))), default()
        )


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (Study(rows=[]), "at least one"),
        (Study(rows=over("scheme", ["head", "head"])), "twice: head"),
        (Study(rows=over("scheme", ["head"]), reference="hed"), "'head'"),
        (Study(rows=over("scheme", ["head"]), seeds=()), "seeds"),
        (Study(rows=over("scheme", ["head"]), tune_seeds=(1, 1)), "tune_seeds"),
        (Study(rows=over("schem", ["head"])), "scheme"),
    ],
)
def test_wrong_studies_are_refused(study, message):
    with pytest.raises(UserError, match=message):
        row_specs(study, default())


def test_a_config_file_without_a_study_is_named(tmp_path):
    with pytest.raises(UserError, match=r"quickstart.py.*get_study"):
        load_study("configs/quickstart.py")
    file = tmp_path / "c.py"
    file.write_text("def get_study():\n    return 3\n")
    with pytest.raises(UserError, match=r"c.py.*Study, found int"):
        load_study(str(file))


@pytest.mark.parametrize("values", ["head", 0.1, None])
def test_an_axis_takes_a_list_and_no_single_value(values):
    with pytest.raises(UserError, match=r"over\('scheme', …\): expected a list of values"):
        over("scheme", values)


@pytest.mark.parametrize("seeds", [3, (), (0, 0), (0.5, 1), "01", (True, 2)])
def test_seeds_are_different_whole_numbers(seeds):
    with pytest.raises(UserError, match="^seeds: expected a list of different whole numbers"):
        row_specs(Study(rows=over("scheme", ["head"]), tune=[], seeds=seeds), default())


def test_overrides_name_the_key_that_is_meant_and_the_kind_of_a_value():
    with pytest.raises(UserError, match="'optimizer.lr'. Did you mean 'optimizer.learning_rate'"):
        apply_overrides(default(), {"optimizer.lr": 0.1})
    with pytest.raises(UserError, match="learning_rate='0.1': expected a number, found a text$"):
        apply_overrides(default(), {"optimizer.learning_rate": "0.1"})
