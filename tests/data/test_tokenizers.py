"""Tokenizers of other people: panics, aborts, endless work and wrong numbers are refused."""

import json

import numpy as np
import pytest

from finetune_jax.data import tokenizer_file
from finetune_jax.data.batches import cached
from finetune_jax.data.cut_texts import cut_texts
from finetune_jax.data.listing import TableExamples
from finetune_jax.data.text import TextPreprocess
from finetune_jax.data.tokenizer_file import LONGEST_TEXT, open_tokenizer
from finetune_jax.data.unknown_tokens import token_remarks
from finetune_jax.errors import UserError

pytest.importorskip("tokenizers", reason="not run: needs the package tokenizers")


def made(**changes):
    """A tokenizer.json of three words."""
    return json.dumps(
        {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
            "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None,
            "decoder": None,
            "model": {
                "type": "WordLevel", "vocab": {"[UNK]": 0, "[PAD]": 1, "a": 2}, "unk_token": "[UNK]"
            },
        }
        | changes
    )  # fmt: skip


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def opened(size=4, columns=("text",), **changes):
    return TextPreprocess(made(**changes), size, columns)


def test_a_tokenizer_is_tried_once_on_a_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("FINETUNE_JAX_STATE", str(tmp_path / "state"))
    open_tokenizer(made())
    monkeypatch.setattr(tokenizer_file, "_try_elsewhere", lambda content: pytest.fail("again"))
    open_tokenizer(made())


TWICE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # Each tokenizer ends the process, or panics, while the library loads it or encodes a text.
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
            "ends its process by signal 6: memory allocation",
        ),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AA"}}, "PanicException"),
        (
            {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
            "PanicException: chunk size|did not match any variant",
        ),
        ({"pre_tokenizer": split("(a|a|aa)*b")}, "works: PanicException: Onig: .*retry-limit"),
        # Never tried.
        (
            {"normalizer": {"type": "Sequence", "normalizers": [TWICE] * 20}},
            "can make a text 1048576 times as long",
        ),
        ({"pre_tokenizer": split("(a+)+b")}, r"the pattern '\(a\+\)\+b' repeats a group"),
        ({"pre_tokenizer": split("(?:x(?:a{2,}))*b")}, "repeats a group"),
        ({"pre_tokenizer": split("([ab]+){2,50}")}, "repeats a group"),
        ({"pre_tokenizer": split("a" * 20_000)}, "a pattern of 20000 characters"),
        ({"model": 3}, "expected an object with a 'model'"),
        ({"model": {"type": "Best"}}, "not a tokenizer that works"),
    ],
)
def test_a_tokenizer_that_would_take_the_process_along_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        open_tokenizer(made(**changes))


def test_what_is_no_tokenizer_or_too_slow_is_refused(monkeypatch, tmp_path):
    for content, words in (
        ("[1]", "expected an object with a 'model'"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ("[" * 100_000, "nested too deeply"),
    ):
        with pytest.raises(UserError, match=words):
            open_tokenizer(content)
    monkeypatch.setattr(tokenizer_file, "_SECONDS", 0.01)
    with pytest.raises(UserError, match="needs more than 0.01 s"):
        open_tokenizer(made(version="slow"))
    monkeypatch.setattr(tokenizer_file, "LARGEST_FILE", 100)
    (tmp_path / "tokenizer.json").write_text(made())
    with pytest.raises(UserError, match="bytes; expected a tokenizer of at most 64 MiB"):
        TextPreprocess.open(tmp_path / "tokenizer.json", 4, ("text",), "joined")


@pytest.mark.parametrize(
    "pattern",
    [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
        r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\s+",
        r" ?[^(\s|[.,!?…。，、।۔،])]+",
        r"\d{1,3}(?=(?:\d{3})*\b)",
    ],
)
def test_the_patterns_of_known_models_are_accepted(pattern):
    tokenizer_file._check_pattern(pattern)


def test_numbers_that_the_model_does_not_have_are_refused_by_name():
    opened().require_rows(3, 1)
    with pytest.raises(UserError, match="token 'a' has the number 2, and the model knows .* to 1"):
        opened().require_rows(2, 1)
    special = {
        "type": "TemplateProcessing", "pair": [],
        "single": [
            {"SpecialToken": {"id": "X", "type_id": 1}}, {"Sequence": {"id": "A", "type_id": 0}}
        ],
        "special_tokens": {"X": {"id": "X", "ids": [700], "tokens": ["X"]}},
    }  # fmt: skip
    with pytest.raises(UserError, match="has the number 700"):
        opened(post_processor=special).require_rows(3, 2)
    with pytest.raises(UserError, match="tokens of type 1, and the model knows .* 0 to 0"):
        opened(post_processor=special).require_rows(701, 1)
    padding = {
        "strategy": {"Fixed": 4}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 9,
        "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"'\[PAD\]' has the number 9"):
        opened(padding=padding).require_rows(3, 1)


def test_hard_texts():
    preprocess = opened()
    with pytest.raises(UserError, match="text: the text .* is not valid Unicode at character 2"):
        preprocess.host({"text": "a \udc80"})
    ids = preprocess.host({"text": "a \0 a"})["input_ids"]
    assert ids.tolist() == [2, 0, 2, 1]
    assert preprocess.host({"text": b"a \xff a a a"})["input_ids"].tolist() == [2, 0, 2, 2]
    long = "a " * LONGEST_TEXT
    np.testing.assert_array_equal(preprocess.host({"text": long})["input_ids"], [2, 2, 2, 2])
    with pytest.raises(UserError, match=r"a text of 100004 characters; .* fewer tokens than .* 4"):
        preprocess.host({"text": " " * LONGEST_TEXT + "a a "})


def test_the_tokenizer_of_an_artifact_belongs_to_it(tmp_path):
    values = opened().to_json(tmp_path)
    assert TextPreprocess.from_json({k: v for k, v in values.items() if k != "kind"}, tmp_path)
    (tmp_path / "tokenizer.json").write_text(made(version="1.1"))
    with pytest.raises(UserError, match="not the tokenizer of the artifact; it was changed"):
        TextPreprocess.from_json({k: v for k, v in values.items() if k != "kind"}, tmp_path)


def test_a_tokenizer_as_long_as_those_of_real_models_is_read_from_an_artifact(tmp_path):
    content = made() + " " * 500_000
    preprocess = TextPreprocess(content, 4, ("text",))
    values = {k: v for k, v in preprocess.to_json(tmp_path).items() if k != "kind"}
    assert TextPreprocess.from_json(values, tmp_path) == preprocess
    with pytest.raises(UserError, match=r"preprocess\.tokenizer: expected a text"):
        TextPreprocess.from_json(
            {**{k: v for k, v in values.items() if k != "sha256"}, "tokenizer": 3}
        )


BERT = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "[UNK]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": x, "type_id": 0}} for x in "AB"],
    "special_tokens": {"[UNK]": {"id": "[UNK]", "ids": [0], "tokens": ["[UNK]"]}},
}  # fmt: skip
WORDS = {"[UNK]": 0, "[PAD]": 1, **{letter: i for i, letter in enumerate("abcdef", 2)}}


def cutting(columns=("text",), pairs="joined", size=3, **truncation):
    model = {"type": "WordLevel", "vocab": WORDS, "unk_token": "[UNK]"}
    cut = {"max_length": 99, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    content = made(
        model=model, post_processor=BERT, truncation=(cut | truncation) if truncation else None
    )
    return TextPreprocess(content, size, columns, pairs)


def words(preprocess, **texts):
    names = {number: name for name, number in WORDS.items()}
    ids = preprocess.host(texts)["input_ids"]
    return "/".join("".join(names[i] for i in row if i > 1) for row in np.atleast_2d(ids))


@pytest.fixture
def untried(monkeypatch):
    """Uses tokenizers without a trial in a process of their own; texts end at 100 characters."""
    monkeypatch.setattr(tokenizer_file, "_try_elsewhere", lambda content: None)
    monkeypatch.setattr("finetune_jax.data.text.LONGEST_TEXT", 100)


@pytest.mark.usefixtures("untried")
def test_texts_are_cut_at_the_side_that_the_file_names():
    assert words(cutting(), text="a b c d") == "ab"
    assert words(cutting(direction="Right"), text="a b c d") == "ab"
    assert words(cutting(direction="Left"), text="a b c d") == "cd"
    apart = cutting(("x", "y"), "apart", direction="Left", strategy="OnlySecond")
    assert words(apart, x="a b c d", y="e f") == "cd/ef"
    long = "a b " * 100 + "c d"
    assert words(cutting(direction="Left"), text=long) == "cd"
    assert words(cutting(), text=long) == "ab"


@pytest.mark.usefixtures("untried")
def test_of_two_texts_the_one_is_cut_that_the_strategy_names():
    def joined(x, y, size=4, **truncation):
        return words(cutting(("x", "y"), size=size, **truncation), x=x, y=y)

    assert joined("a b c", "d e f") == joined("a b c", "d e f", strategy="LongestFirst") == "abde"
    assert joined("a b c", "d e f", strategy="OnlyFirst") == "adef"
    assert joined("a b c", "d e f", strategy="OnlySecond") == "abcd"
    assert joined("a b c", "d e f", strategy="OnlySecond", direction="Left") == "abcf"
    with pytest.raises(UserError, match="longer than 4 tokens, and .* 'only_second', cuts a text"):
        joined("a b c d e", "f", strategy="OnlySecond")
    assert words(cutting(strategy="OnlySecond"), text="a b c d") == "ab"


@pytest.mark.usefixtures("untried")
def test_a_config_beside_the_file_may_name_the_side(tmp_path, capsys):
    path, config = tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"
    path.write_text(cutting().tokenizer)

    def read():
        return TextPreprocess.open(path, 3, ("text",), "joined")

    plain = read()
    config.write_text('{"truncation_side": "right"}')
    assert read() == plain and plain.tokenizer == path.read_text()
    config.write_text('{"truncation_side": "left", "model_max_length": 1e30}')
    assert words(read(), text="a b c d") == "cd"
    stored = {key: value for key, value in read().to_json().items() if key != "kind"}
    again = TextPreprocess.from_json(stored)
    assert words(again, text="a b c d") == "cd"
    config.write_text("{")
    assert read() == plain
    assert "tokenizer_config.json: not used" in capsys.readouterr().err


@pytest.mark.usefixtures("untried")
def test_texts_that_are_cut_are_counted():
    texts = ["a", "a b", "a b c", "a b c d e f", "", "a b " * 100]
    examples = TableExamples({"text": texts}, {})
    for direction in ("Right", "Left"):
        preprocess = cutting(direction=direction)
        assert [preprocess.cuts({"text": t}) for t in texts] == [0, 0, 1, 1, 0, 1]
        for limit in (0, 2**20):
            line = cut_texts(preprocess, examples, cached(examples, preprocess.host, limit))
            assert line == "the texts of 3 of 6 examples are cut to 3 tokens (data.max_tokens)"
    assert cut_texts(preprocess, TableExamples({"text": ["a"]}, {}), examples) == ""
    many = TableExamples({"text": ["a", "a b c"] * 1000}, {})
    line = cut_texts(preprocess, many, many)
    assert "of a sample of 1000 examples" in line
    pair = cutting(("x", "y"), size=4)
    assert pair.cuts({"x": "a b c", "y": "d e"}) and not pair.cuts({"x": "a b", "y": "d e"})


@pytest.mark.usefixtures("untried")
def test_a_single_text_may_have_tabs_in_it():
    assert cutting().read("a\tb") == {"text": "a\tb"}
    assert words(cutting(), **cutting().read("a\tb")) == "ab"
    pair = cutting(("x", "y"))
    assert pair.read("a\tb") == {"x": "a", "y": "b"}
    with pytest.raises(UserError, match="expected 2 texts separated by tabs, found 3"):
        pair.read("a\tb\tc")


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("value", [None, float("nan"), ["a"], {"role": "user"}, np.array(["a"])])
def test_what_is_no_text_is_not_tokenized(value):
    with pytest.raises(UserError, match="text: expected a text, found .*; fill in the text"):
        cutting().host({"text": value})
    assert words(cutting(), text=b"a b") == words(cutting(), text=np.str_("a b")) == "ab"
    assert words(cutting(), text=7) == ""


def test_a_tokenizer_that_does_not_fit_its_config_is_reported(tmp_path):
    from finetune_jax.data.tokenizer_file import remarks

    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"do_lower_case": true}')
    plain = {"post_processor": {"type": "x"}, "normalizer": None}
    lower = {**plain, "normalizer": {"type": "BertNormalizer", "lowercase": True}}
    (line,) = remarks(json.dumps(plain), config)
    assert "keeps capital letters, although tokenizer_config.json has do_lower_case=True" in line
    assert not list(remarks(json.dumps(lower), config))
    assert not list(remarks(json.dumps(plain), tmp_path / "no.json"))
    (line,) = remarks(json.dumps({**lower, "post_processor": None}), config)
    assert "adds no special tokens" in line


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("in_memory", [True, False])
def test_unknown_tokens_and_empty_texts_are_reported(in_memory):
    # Around each text the token "f", which is no part of the text.
    around = json.loads(json.dumps(BERT).replace("[UNK]", "f").replace("[0]", "[7]"))
    model = {"type": "WordLevel", "vocab": WORDS, "unk_token": "[UNK]"}
    preprocess = TextPreprocess(made(model=model, post_processor=around), 4, ("text",))

    def remarks(*texts):
        examples = TableExamples({"text": list(texts)}, {})
        encoded = cached(examples, preprocess.host, 2**20) if in_memory else examples
        return list(token_remarks(preprocess, examples, encoded))

    assert remarks("a b", "c d", "e") == []
    assert remarks("a b c", "d x", "e e") == []  # 1 of 7 tokens
    of = "2 examples" if in_memory else "a sample of 2 examples"
    assert remarks("a x", "y b") == [
        f"50% of the tokens of {of} are '[UNK]', which the tokenizer gives for what it does not "
        f"know; expected a tokenizer for the language of the texts"
    ]
    of = of.replace("2", "3")
    assert remarks("a", "", " ") == [f"2 texts of {of} are empty"]


def test_the_file_of_a_newer_library_says_what_to_do():
    newer = {"type": "Newer", "vocab": {}, "merges": []}
    with pytest.raises(UserError, match="which a newer version may have .*install -U tokenizers"):
        opened(model=newer)._tokenizer  # noqa: B018


def test_a_folder_stands_for_the_tokenizer_in_it(tmp_path):
    with pytest.raises(UserError, match=r"no file .*/tokenizer.json; expected"):
        TextPreprocess.open(tmp_path, 4, ("text",), "joined")
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"")
    with pytest.raises(UserError, match=r"sentencepiece.bpe.model is beside it: transformers"):
        TextPreprocess.open(tmp_path, 4, ("text",), "joined")
    (tmp_path / "tokenizer.json").write_text(made())
    assert TextPreprocess.open(tmp_path, 4, ("text",), "joined").tokenizer == made()


def test_a_tokenizer_that_pads_at_the_start_is_padded_at_the_end():
    padding = {
        "strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    rules = json.loads(cutting(direction="Right").tokenizer)
    encoded = [
        TextPreprocess(json.dumps(rules | {"padding": given}), 6, ("x",), "joined").host(
            {"x": "a b"}
        )
        for given in (padding, padding | {"direction": "Right"})
    ]
    for name, values in encoded[0].items():
        np.testing.assert_array_equal(values, encoded[1][name])
    assert encoded[0]["attention_mask"][0] == 1 and encoded[0]["attention_mask"][-1] == 0
