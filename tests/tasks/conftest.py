"""Tiny models, a tiny tokenizer and tiny texts, so that a run of any task takes seconds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_jax.config import default
from finetune_jax.models import MODELS, Entry, Inputs
from finetune_jax.models.text_encoder import TextEncoder
from finetune_jax.models.vit import ViT

WORDS = (
    "a", "the", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "red", "blue",
)  # fmt: skip


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers ``tiny_vit`` (16 pixels, 16 patches) and ``tiny_text`` (16 words of 8 tokens)."""
    images = functools.partial(ViT, width=16, depth=2, heads=2, patch=4)
    texts = functools.partial(
        TextEncoder, width=16, depth=2, heads=2, vocabulary=20, positions=16, pooling="mean"
    )
    inputs = Inputs(16, crop=0)
    monkeypatch.setitem(MODELS, "tiny_vit", Entry("vit", images, inputs, patch=4, dropout=True))
    monkeypatch.setitem(
        MODELS, "tiny_text", Entry("bert", texts, Inputs(8), dropout=True, tokens=True)
    )


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.json of whole words, with BERT's special tokens around them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    made = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 60 pairs of texts and how many words they share."""
    path = tmp_path_factory.mktemp("texts") / "pairs.csv"
    rows = ["one,other,label"]
    for i in range(60):
        one = [WORDS[(i * k) % len(WORDS)] for k in (1, 3, 5)]
        other = [WORDS[(i * k) % len(WORDS)] for k in (1, 3, 7)]
        rows.append(f"{' '.join(one)},{' '.join(other)},{len({*one} & {*other})}")
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def tiny(tokenizer: Path, pairs: Path) -> Callable[..., Any]:
    """A function of a task's name, its loss and config keys to a config of two steps."""

    def make(task: str, loss: str = "", **keys: Any) -> Any:
        config = default()
        config.task.name, config.task.loss = task, loss
        config.scheme = "last_k(1)"
        config.model.name = "tiny_vit"
        config.data.train = "train[:32]"
        config.data.validation = "validation[:20]"
        config.data.test = "test[:20]"
        config.train.batch_size, config.train.steps, config.eval.batch_size = 16, 4, 16
        config.optimizer.name, config.optimizer.learning_rate = "adamw", 0.01
        config.log.every_steps, config.log.tensorboard = 1, False
        if keys.pop("texts", False):
            config.model.name = "tiny_text"
            config.data.source, config.data.tokenizer = f"csv:{pairs}", str(tokenizer)
            config.data.train, config.data.validation, config.data.test = (
                "train[:32]", "validation", "test",
            )  # fmt: skip
            config.data.text_columns = ("one", "other")
        for key, value in keys.items():
            node, last = config, key.split("__")
            for part in last[:-1]:
                node = node[part]
            with node.ignore_type():
                node[last[-1]] = value
        return config

    return make
