"""Text encoders against transformers."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from harness import Case, randomise

from finetune_jax.models.text_encoder import TextEncoder

_VOCABULARY, _LENGTH, _LENGTHS = 61, 12, (12, 7, 1)
_BLOCKS = {i: f"block_{i}" for i in range(3)}
_SMALL = {
    "width": 48, "depth": 3, "heads": 3, "num_classes": 7, "inner": 80, "vocabulary": _VOCABULARY,
    "positions": 20,
}  # fmt: skip
_ROBERTA = {"types": 1, "padding": 1, "from_padding": True, "epsilon": 1e-5}


def _text(padding: int, types: bool) -> dict[str, np.ndarray]:
    """Three texts of different lengths, padded; the second half of a text has the other type."""
    generator = np.random.default_rng(0)
    ids = generator.integers(2, _VOCABULARY, (len(_LENGTHS), _LENGTH)).astype(np.int32)
    mask = np.arange(_LENGTH)[None] < np.array(_LENGTHS)[:, None]
    text = {"input_ids": np.where(mask, ids, padding).astype(np.int32)}
    text["attention_mask"] = mask.astype(np.int32)
    if types:
        second = np.arange(_LENGTH)[None] >= np.array(_LENGTHS)[:, None] // 2
        text["token_type_ids"] = (second & mask).astype(np.int32)
    return text


def _feed(text):
    return {name: torch.from_numpy(array.astype(np.int64)) for name, array in text.items()}


def _config(kind, **options):
    return kind(
        vocab_size=_VOCABULARY,
        **{
            "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3,
            "intermediate_size": 80, "max_position_embeddings": 20, "num_labels": 7,
        }
        | options,
    )  # fmt: skip


def _bert(name, **options):
    import transformers

    model = getattr(transformers, name)(_config(transformers.BertConfig, **options))
    return randomise(model)


def _roberta(name):
    import transformers

    config = _config(
        transformers.RobertaConfig, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1
    )
    return randomise(getattr(transformers, name)(config))


class _Headed(torch.nn.Module):
    """A trunk of transformers under its usual prefix, and a classifier on its pooled tokens."""

    def __init__(self, prefix, trunk, width, pool):
        super().__init__()
        self.prefix, self.pool = prefix, pool
        self.add_module(prefix, trunk)
        self.classifier = torch.nn.Linear(width, 7)

    def forward(self, **text):
        tokens = getattr(self, self.prefix)(**text).last_hidden_state
        return self.classifier(self.pool(tokens, text["attention_mask"]))


def _mean(tokens, mask):
    """The pooling of sentence-transformers."""
    share = mask[..., None].float()
    return (tokens * share).sum(1) / share.sum(1).clamp(min=1e-9)


def _first(tokens, mask):
    return tokens[:, 0]


def _headed(pool, **options):
    import transformers

    config = _config(transformers.BertConfig, **options)
    trunk = transformers.BertModel(config, add_pooling_layer=False)
    return randomise(_Headed("bert", trunk, config.hidden_size, pool))


def _stages(prefix, depth=3):
    blocks = {f"block_{i}": f"{prefix}encoder.layer.{i}" for i in range(depth)}
    return {"stem": f"{prefix}embeddings", **blocks}


def _save_old_names(module, folder):
    """gamma and beta, as in files converted from TensorFlow in 2018."""
    from safetensors.torch import save_file

    def old(name):
        if "LayerNorm" in name:
            name = name.replace("weight", "gamma").replace("bias", "beta")
        return name

    path = folder / "model.safetensors"
    save_file({old(n): t.clone() for n, t in module.state_dict().items()}, path)
    return path


_BERT_CASE = Case(
    "text/transformers/bert", "bert", "transformers",
    lambda: _bert("BertForSequenceClassification"), lambda: TextEncoder(**_SMALL),
    _stages("bert."), inputs=lambda: _text(0, True), feed=_feed, gradients=True,
)  # fmt: skip


CASES = [
    _BERT_CASE,
    dataclasses.replace(
        _BERT_CASE, name="text/transformers/bert_old_names", save=_save_old_names, export=False,
        gradients=False,
    ),
    Case(
        "text/transformers/bert_mean", "bert", "transformers_without_pooler",
        lambda: _headed(_mean), lambda: TextEncoder(**_SMALL, pooling="mean"),
        _stages("bert."), inputs=lambda: _text(0, False), feed=_feed,
    ),
    Case(
        "text/transformers/bert_cls", "bert", "transformers_without_pooler",
        lambda: _headed(_first), lambda: TextEncoder(**_SMALL, pooling="cls"),
        _stages("bert."), inputs=lambda: _text(0, True), feed=_feed,
    ),
    Case(
        "text/transformers/minilm_l6", "bert", "transformers_without_pooler",
        lambda: _headed(
            _mean, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
            intermediate_size=1536,
        ),
        lambda: TextEncoder(
            width=384, depth=6, heads=12, num_classes=7, vocabulary=_VOCABULARY, positions=20,
            pooling="mean",
        ),
        _stages("bert.", 6), inputs=lambda: _text(0, True), feed=_feed, gradients=True,
    ),
    Case(
        "text/transformers/roberta", "roberta", "transformers_classifier",
        lambda: _roberta("RobertaForSequenceClassification"),
        lambda: TextEncoder(**_SMALL, **_ROBERTA),
        _stages("roberta."), inputs=lambda: _text(1, False), feed=_feed, gradients=True,
    ),
]  # fmt: skip
