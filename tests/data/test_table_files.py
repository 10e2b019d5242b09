"""Tables of other programs: read correctly, or refused with a message that says what to do."""

import bz2
import gzip
import lzma
from types import SimpleNamespace

import pytest
from PIL import Image

from finetune_jax.artifact.items import prediction_inputs
from finetune_jax.config import default
from finetune_jax.data.sources import Options, open_source
from finetune_jax.errors import UserError
from finetune_jax.setup import open_setup

PLAIN = "text,label\nä one,yes\ntwo,no\n"
RIGHT = [("two", 0), ("ä one", 1)]


def rows(source, split="train"):
    examples = source.read(split)
    return sorted((examples[i]["text"], examples[i]["label"]) for i in range(len(examples)))


def opened(tmp_path, content, options=None, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_source(f"csv:train={path}", options or Options())


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (PLAIN, "plain.csv"),
        (PLAIN.encode("utf-8-sig"), "mark.csv"),
        (PLAIN.encode("utf-16"), "utf16.csv"),
        (b"\xfe\xff" + PLAIN.encode("utf-16-be"), "utf16be.csv"),
        (PLAIN.encode("utf-32"), "utf32.csv"),
        (gzip.compress(PLAIN.encode(), mtime=0), "t.csv.gz"),
        (gzip.compress(PLAIN.replace(",", "\t").encode(), mtime=0), "t.tsv.gz"),
        (bz2.compress(PLAIN.encode("utf-8-sig")), "t.csv.bz2"),
        (lzma.compress(PLAIN.encode()), "t.csv.xz"),
        (PLAIN.replace("\n", "\r\n"), "windows.csv"),
        (PLAIN + "\x00,no\n", "zero.csv"),
        (PLAIN.replace("\n", "\r"), "old_mac.csv"),
        (PLAIN.replace(",", ";"), "semicolon.csv"),
        (PLAIN.replace(",", "\t"), "tab.csv"),
        (PLAIN.replace(",", "|"), "bar.csv"),
        (PLAIN, "comma.tsv"),
        ("a, b;text;label\n1;ä one;yes\n2;two;no\n", "ragged.csv"),
        ("sep=;\n" + PLAIN.replace(",", ";"), "excel.csv"),
        (PLAIN.replace(",", ", "), "spaces.csv"),
        ('text, label\n"ä one", "yes"\n"two", "no"\n', "quoted_spaces.csv"),
        (PLAIN.replace("label", " label "), "name.csv"),
        (PLAIN.replace("label", "Label"), "case.csv"),
        (PLAIN.replace("\n", "\n\n") + ",\n", "blank_rows.csv"),
        ("text,label,,\nä one,yes,,\ntwo,no,,\n,,,\n", "empty_columns.csv"),
        ("text,label\nä one,yes,\ntwo,no,\n", "trailing.csv"),
        ('text,label\n"ä one","yes"\n"two","no"', "quotes.csv"),
    ],
)
def test_the_same_table_is_read_from_every_form(tmp_path, content, name):
    source = opened(tmp_path, content, name=name)
    assert source.class_names == ("no", "yes")
    assert [row for row in rows(source) if row[0] != "\x00"] == RIGHT


def test_a_command_that_predicts_reads_the_same_tables(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(PLAIN.replace(",", ";").encode("utf-16")))
    inputs = prediction_inputs([str(path)], SimpleNamespace(kind="text", columns=("text",)))
    assert [one.item for one in inputs] == [{"text": "ä one"}, {"text": "two"}]


def test_what_was_inferred_or_left_out_is_reported(tmp_path, capsys):
    opened(tmp_path, PLAIN)
    assert capsys.readouterr().err == ""
    opened(tmp_path, PLAIN.replace(",", ";") + ";\n;\n")
    said = capsys.readouterr().err
    assert "separated by ';'" in said and "2 rows without any text are left out" in said


def test_quotes_and_line_breaks_in_fields(tmp_path):
    text = 'text,label\n"a ""b"",\nc",no\nd,yes\n'
    source = opened(tmp_path, text)
    assert rows(source) == [('a "b",\nc', 0), ("d", 1)]
    with pytest.raises(UserError, match="t.csv, line 4: expected a number"):
        opened(tmp_path, text.replace("no", "1"), Options(label_kind="number"))


def test_the_order_and_the_case_of_columns_may_differ_between_files(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,x\n")
    (tmp_path / "test.csv").write_text("Label,text\ny,b\n")
    source = open_source(f"csv:{tmp_path}/train.csv,{tmp_path}/test.csv")
    assert rows(source) == [("a", 0)] and rows(source, "test") == [("b", 1)]
    (tmp_path / "test.csv").write_text("text,id\nb,3\n")
    with pytest.raises(UserError, match="test.csv: has no column 'label', which .*train.csv has"):
        open_source(f"csv:{tmp_path}/train.csv,{tmp_path}/test.csv")
    (tmp_path / "test.csv").write_text("b,y\nc,x\n")
    with pytest.raises(UserError, match="name the columns with data.csv.header"):
        open_source(f"csv:{tmp_path}/train.csv,{tmp_path}/test.csv")


def test_a_split_column_in_another_case(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,label,Split\na,x,Train\nb,y,DEV\nc,x,train\n")
    assert open_source(f"csv:{path}").splits == {"train": 2, "validation": 1}
    path.write_text("text,label,Split\n" + "a,x,oak\nb,y,ash\n" * 5)
    assert open_source(f"csv:{path}").splits == {"train": 8, "validation": 1, "test": 1}
    path.write_text("text,label,split\na,x,train\nb,y,trian\n")
    with pytest.raises(UserError, match="line 3: unknown split 'trian' .* Did you mean 'train'"):
        open_source(f"csv:{path}")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (PLAIN.encode("utf-16-le"), {}, "set data.csv.encoding to 'utf-16-le'"),
        (PLAIN.encode("utf-16-be"), {}, "set data.csv.encoding to 'utf-16-be'"),
        (b"text,label\na,x\nb\xe9,y\n", {}, "at byte 16, in line 3; set data.csv.encoding"),
        (b"a" * 70000 + b"\n\xe9", {}, "at byte 70001, in line 2"),
        (b"PK\x03\x04xl/workbook", {}, "found an Excel workbook .* save it as CSV"),
        (b"PAR1....", {}, "found a Parquet file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", {}, "run 'git lfs pull'"),
        (b"\n<!DOCTYPE html>", {}, "found a web page; download the table again"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00", {}, "byte 8 is 0 .* so this is a binary file"),
        (b'{"text": "a", "label": "x"}\n', {}, "found JSON"),
        ("text,label\na,x\ntext,label\n", {}, "line 3: the first line, .* is repeated"),
        ("text,label\na,x\n", {"header": ("text", "label")}, "line 1: .* leave data.csv.header"),
        ("a,x\n", {"header": ("text", "text")}, "more than one column is called 'text'"),
        ("My data\ntext,label\na,x\n", {}, "line 2: .* remove a title or comment above them"),
        (gzip.compress(PLAIN.encode(), mtime=0)[:-9], {}, "not a whole gzip file"),
        ("text,label,label\na,x,y\n", {}, "'label' .columns 2 and 3.; give each column a name"),
        ("text,label\na, b,x\n", {}, "line 2: .*enclose a text that has a ',' in it in quotes"),
        ("text,label\na\nb,x\n", {}, "line 2: .*has a line break in it in quotes"),
        ('text,label\n"a \\"b\\" c",x\n', {}, "line 2: .*write quotes inside of a field twice"),
        ('text,label\na,x\n"b,y\nc,x\nd,y\n', {}, "line 3: unexpected end of data"),
        ("text,label\n", {}, "no rows after its first line"),
        ("text,score,Score\na,1,2\n", {"label_column": "SCORE"}, "several .* 'score', 'Score'"),
        ("id;note, long;score\n1;a, b;2\n", {"label_column": "score"},
         "separated by ';': set data.csv.sep"),
        ("a film,1\nb,2\n", {"label_column": "score"},
         "'a film', '1', from its first line; if that line is data, .* data.csv.header"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_this_kind_names_the_cure(tmp_path, content, options, message):
    with pytest.raises(UserError, match=message):
        opened(tmp_path, content, Options(**options))


@pytest.mark.parametrize("task", ["classification", "regression", "multilabel", "ordinal"])
@pytest.mark.parametrize("first", ["", "file,note\n"])
def test_a_table_without_labels_is_refused_before_the_run(tmp_path, task, first):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text(first + "a.png,cat\n" + "a.png,dog\n" * 9)
    config = default()
    config.data.source = f"csv:{tmp_path}/t.csv"
    config.data.image_column = "file" if first else "a.png"
    config.task.name = task
    wanted = "data.label_column: the model reads 'label', .* data.csv.header"
    with pytest.raises(UserError, match=wanted):
        open_setup(config)
    if not first:
        config.data.image_column = "image"
        with pytest.raises(UserError, match="data.image_column: the model reads 'image', and .*da"):
            open_setup(config)


def test_names_of_images_may_have_spaces_around_them(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a b.png")
    Image.new("RGB", (4, 4), "blue").save(tmp_path / " c.png")
    (tmp_path / "t.csv").write_text("label,image\nx, a b.png\ny, c.png\n")
    source = open_source(f"csv:train={tmp_path}/t.csv")
    examples = source.read("train")
    found = {examples[i]["label"]: examples[i]["image"][0, 0].tolist() for i in range(2)}
    assert found == {0: [255, 0, 0], 1: [0, 0, 255]}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "line 3: the path of the image in the column 'image' is empty"),
        ("gone.png", "line 3: .*gone.png: cannot be read: .*relative to the folder of the table"),
        ("pictures\\a.png", "line 3: .*write / between folders"),
        ("https://x.org/a.png", "line 3: .*download them first"),
        ("a", "line 3: .*there is .*a.png: write names with their suffix"),
    ],
)
def test_an_image_that_is_not_there_is_named_with_its_line(tmp_path, written, message):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text(f"label,image\nx,a.png\ny,{written}\n")
    with pytest.raises(UserError, match=f"t.csv, {message}"):
        open_source(f"csv:train={tmp_path}/t.csv")
    source = open_source(f"csv:train={tmp_path}/t.csv", Options(on_bad_image="skip"))
    assert len(source.read("train")) == 1
