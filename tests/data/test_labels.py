"""Labels are read strictly; other labels are refused with their place and what to do."""

import numpy as np
import pytest

from finetune_jax.config import default
from finetune_jax.data.class_map import open_configured
from finetune_jax.data.classes import number_of
from finetune_jax.data.label_columns import encode_columns
from finetune_jax.data.labels import encode_labels, is_missing
from finetune_jax.data.sources import Options, open_source
from finetune_jax.errors import UserError

MISSING = [
    "", " ", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "<NA>", "#N/A", "None", "null", "NULL", "NaT",
    "inf", "-inf", "Infinity", "#DIV/0!", "#VALUE!", "1.#QNAN", None, float("nan"), float("inf"),
    np.float64("nan"),
]  # fmt: skip
NAMES = ["none", "na", "no", "nil", "missing", "unknown", "-", "?", "0", "nano", "information"]


@pytest.mark.parametrize("value", MISSING)
def test_what_stands_for_a_missing_value_is_no_class(value):
    assert is_missing(value)
    place = "row {}".format
    with pytest.raises(UserError, match="row 1: the label .*fill in the label or remove the row"):
        encode_labels(["a", value, "b", "a"], Options(), "t", place)
    with pytest.raises(UserError, match="row 2: the label .* .and so in 1 more rows.; fill"):
        encode_labels(["1", "2", value, value], Options(task_labels="number"), "t", place)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_classes_stay(name):
    assert not is_missing(name)
    assert name in encode_labels(["a", name], Options(label_kind="class"), "t")[0]


def test_a_country_called_na_is_a_class_where_all_classes_are_listed(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,NA\nb,DE\nc,AO\nd,NA\n")
    config = default()
    config.data.source = f"csv:train={tmp_path}/train.csv"
    with pytest.raises(UserError, match="line 2: .*'NA' .* in 1 more rows.*data.class_order"):
        open_configured(config.data)
    config.data.class_order = ("NA", "DE", "AO")
    config.data.validation = ""  # no example is held out
    source = open_configured(config.data)
    examples = source.read("train")
    assert source.class_names == ("NA", "DE", "AO")
    found = {examples[i]["text"]: examples[i]["label"] for i in range(4)}
    assert found == {"a": 0, "b": 1, "c": 2, "d": 0}
    config.data.class_order = ()
    config.data.classes = str(tmp_path / "classes.txt")
    (tmp_path / "classes.txt").write_text("DE\nAO\n")
    source = open_configured(config.data)
    assert source.class_names == ("DE", "AO") and source.splits == {"train": 2}
    kept = encode_labels(["NA|x", "x", ""], Options(label_kind="classes", class_order=("NA",)), "t")
    assert kept == (("NA", "x"), [[0, 1], [1], []])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2.5", 2.5), ("-3", -3.0), ("+.5", 0.5), ("5.", 5.0), ("1e3", 1000.0), (" 7 ", 7.0),
        (b"2.5", 2.5), (4, 4.0), (np.float32(0.5), 0.5), (True, 1.0),
        ("1_000", None), ("2,5", None), ("1,000", None), ("٣", None), ("１", None), ("0x10", None),
        ("1 000", None), ("nan", None), ("inf", None), ("50%", None), ("", None), (None, None),
    ],
)  # fmt: skip
def test_a_number_is_written_in_decimal_digits(text, number):
    assert number_of(text) == number


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("2,5", "neither as a decimal point nor between thousands: write 2.5 or 1000"),
        ("1,000", "write 2.5 or 1000"),
        ("1.000,50", "write 2.5 or 1000"),
        ("1,234.5", "write 2.5 or 1000"),
        ("50%", "write the number alone"),
        ("$5", "write the number alone"),
        ("1.5 kg", "write the number alone"),
        ("pos", "for names of classes the task is 'classification'"),
        ("1_000", "found '1_000'"),
        ("1e999", "which is too large"),
    ],
)
def test_regression_reads_numbers_and_nothing_else(tmp_path, text, cure):
    (tmp_path / "train.csv").write_text(f'text,label\na,"{text}"\nb,"{text}"\n')
    config = default()
    config.data.source = f"csv:train={tmp_path}/train.csv"
    # All labels may be of this kind, or only one of many.
    for line in (2, 4):
        with pytest.raises(UserError, match=f"train.csv, line {line}: expected a number.*{cure}"):
            open_configured(config.data, "number")
        (tmp_path / "train.csv").write_text(f'text,label\na,1\nb,2.5\nc,"{text}"\n')


def test_lists_of_labels():
    several = Options(label_kind="classes")
    assert encode_labels([["b", "a"], [], ["b"]], Options(), "t") == (("a", "b"), [[1, 0], [], [1]])
    assert encode_labels([[10, 2], [2]], several, "t") == (("2", "10"), [[1, 0], [0]])
    with pytest.raises(UserError, match="example 0: the label is a list, .* data.label_columns"):
        encode_labels([[0, 1], [1, 1]], Options(), "t")
    with pytest.raises(UserError, match="example 1: a list of labels"):
        encode_labels(["a", ["b"]], Options(label_kind="class"), "t")
    for value in (None, "a|nan", ["a", "NA"]):
        with pytest.raises(UserError, match="example 1: .* stands for missing labels"):
            encode_labels(["a", value], several, "t")


def test_several_labels_in_one_text():
    task = Options(task_labels="classes")
    assert encode_labels(["b|a", "", "b"], task, "t") == (("a", "b"), [[1, 0], [], [1]])
    # One label for each example is fine, and so is a name with a comma in it.
    assert encode_labels(["a", "b", "a"], task, "t") == (("a", "b"), [0, 1, 0])
    names = ["cat, wild", "dog, wild", "x"]
    assert encode_labels(names, task, "t") == (tuple(names), [0, 1, 2])
    names = ["new york", "old york", "san francisco"]
    assert encode_labels(names, task, "t") == (tuple(names), [0, 1, 2])
    for text, sep in (("x;y", ";"), ("x, y", ","), ("x/y", "/"), ("x y", " ")):
        with pytest.raises(UserError, match=f"example 0: .*data.label_sep to '{sep}'"):
            encode_labels([text, "y"], task, "t")
        assert encode_labels([text, "y"], Options(task_labels="class"), "t")[0] == (text, "y")
        known = Options(task_labels="classes", class_order=(text, "y"))
        assert encode_labels([text, "y"], known, "t")[1] == [0, 1]
    for text in ("['x', 'y']", "[0, 1, 0]"):
        with pytest.raises(UserError, match="example 1: the label is a list as a text"):
            encode_labels(["x", text], task, "t")
    with pytest.raises(UserError, match="data.label_kind='classes' an empty text means no label"):
        encode_labels(["x", ""], task, "t")


def test_names_that_are_written_in_several_ways_are_reported(capsys):
    encode_labels(["Cat", "cat", "dog"], Options(), "t.csv")
    encode_labels(["1", "1.0", "2"], Options(label_kind="class"), "t.csv")
    encode_labels(["1", "10", "a", "b"], Options(label_kind="class"), "t.csv")
    said = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in said] == [
        "t.csv: 1 classes are written in several ways, such as 'Cat', 'cat'",
        "t.csv: 1 classes are written in several ways, such as '1', '1.0'",
    ]


def test_equal_values_of_several_types():
    assert encode_labels([1, 1.0, True, "1"], Options(), "t") == ((), [1.0, 1.0, 1.0, 1.0])
    assert encode_labels([1, 1.0, 1], Options(label_kind="class"), "t")[1] == [0, 1, 0]


def columns(tmp_path, text, task="classes", **options):
    (tmp_path / "train.csv").write_text(text)
    wanted = Options(label_columns=("cat", "dog", "cow"), task_labels=task, **options)
    source = open_source(f"csv:train={tmp_path}/train.csv", wanted)
    examples = source.read("train")
    found = [examples[i] for i in range(len(examples))]
    return source, {row["text"]: row["label"] for row in found}


def test_one_hot_columns_are_classes_in_their_order(tmp_path):
    text = "text,cow,cat,dog,label\na,0,1,0,x\nb,0.0,false,TRUE,y\nc,1,,0,z\n"
    complete = text.replace(",,", ",0,")
    for task in ("class", ""):
        source, labels = columns(tmp_path, complete, task)
        assert source.class_names == ("cat", "dog", "cow") and "label" in source.columns
        assert labels == {"a": 0, "b": 1, "c": 2}
    with pytest.raises(UserError, match="line 4: .*exactly one .* 1 of 3 columns are 1 and 1 are"):
        columns(tmp_path, text, "class")
    with pytest.raises(UserError, match="line 2: .* 2 of 3 columns are 1; .* task is 'multilabel'"):
        columns(tmp_path, complete.replace("a,0", "a,1"), "class")


def test_unknown_labels_are_nan(tmp_path):
    text = "text,cat,dog,cow\na,1,,0\nb,NA,1,1\nc,0,0,0\n"
    source, labels = columns(tmp_path, text)
    assert source.unknown == 2 and source.class_names == ("cat", "dog", "cow")
    np.testing.assert_array_equal(labels["a"], [1, np.nan, 0])
    np.testing.assert_array_equal(labels["b"], [np.nan, 1, 1])
    np.testing.assert_array_equal(labels["c"], [0, 0, 0])


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("text,cat,dog,cow\na,1,0,-1\n", {}, "line 2, column 'cow': expected 0, 1, .* found '-1'"),
        ("text,cat,dog,cow\na,1,0,0.5\n", {}, "found '0.5'"),
        ("text,cat,dog,cow\na,1,0,inf\n", {}, "found 'inf'"),
        ("text,cat,dog,cow\na,1,0,0\nb,,nan,\n", {}, "line 3: all labels of the example are unkn"),
        ("text,cat,dogs,cow\na,1,0,0\n", {}, "label_columns: .* no column 'dog'. Did you .*'dogs'"),
        ("text,cat,dog,cow\na,1,0,0\n", {"label_column": "text"}, "expected one of the two"),
        ("text,cat,dog,cow\na,1,0,0\n", {"task": "number"}, "one real value or text per example"),
    ],
)  # fmt: skip
def test_other_columns_of_labels_are_refused(tmp_path, text, options, message):
    with pytest.raises(UserError, match=message):
        columns(tmp_path, text, **options)


def test_a_single_table_is_split_by_labels_in_columns(tmp_path):
    lines = "".join(f"t{i},{i % 2},{'' if i % 3 else 1},0\n" for i in range(30))
    (tmp_path / "t.csv").write_text("text,cat,dog,cow\n" + lines)
    wanted = Options(label_columns=("cat", "dog", "cow"))
    assert open_source(f"csv:{tmp_path}/t.csv", wanted).splits == {
        "train": 24, "validation": 3, "test": 3,
    }  # fmt: skip


def test_sources_without_columns_refuse_them(tmp_path):
    config = default()
    config.data.label_columns = ("a", "b")
    for source in ("digits", f"folder:{tmp_path}"):
        config.data.source = source
        with pytest.raises(UserError, match="data.label_columns: .* has no columns"):
            open_configured(config.data)


def test_values_of_a_library_are_read_as_texts_are():
    table = [[True, False, None], [0, 1, 1], [np.float32(0), np.nan, 1.0]]
    labels = encode_columns(table, Options(label_columns=("a", "b", "c")), str)
    np.testing.assert_array_equal(labels, [[1, 0, 0], [0, 1, np.nan], [np.nan, 1, 1]])


def test_whole_numbers_are_one_class_with_and_without_a_decimal_point():
    options = Options(label_kind="class")
    assert encode_labels(["1", "0.0", "0", "1.0"], options, "t") == (("0", "1"), [1, 0, 0, 1])
    assert encode_labels(["1.0", "0.0"], options, "t")[0] == ("0.0", "1.0")
    assert encode_labels(["1.10", "1.1", "1"], options, "t")[0] == ("1", "1.1", "1.10")
    kept = Options(label_kind="class", class_order=("0", "0.0"))
    assert encode_labels(["0", "0.0"], kept, "t")[0] == ("0", "0.0")


def test_a_list_as_a_text_is_no_class():
    with pytest.raises(UserError, match="example 1: .* task.name='multilabel' .*label_kind to"):
        encode_labels(["a", "['a', 'b']"], Options(), "t")
    names = encode_labels(["a", "['a', 'b']"], Options(label_kind="class"), "t")[0]
    assert names == ("['a', 'b']", "a")


@pytest.mark.parametrize(
    ("values", "said"),
    [(["neutral", "-", "yes", "-"], "'-' is one of the classes, of 2 examples"),
     (["-1", "0", "1", "2"], "'-1' is one of the classes, of 1 examples"),
     (["+", "-", "."], ""), (["a", "b"], ""), (["-", "a"], "")],
)  # fmt: skip
def test_what_may_stand_for_no_label_is_said(capsys, values, said):
    encode_labels(values, Options(label_kind="class"), "t")
    error = capsys.readouterr().err
    assert said in error and bool(said) == ("is one of the classes" in error)
