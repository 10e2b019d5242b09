"""Names and shapes of the text encoders at their full sizes, without values."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="not run: needs requirements-reference.txt")
transformers = pytest.importorskip(
    "transformers", reason="not run: needs requirements-reference.txt"
)

from harness import assert_shapes  # noqa: E402

from finetune_jax.pretrained.maps import map_of  # noqa: E402

_MINILM = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
_LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
    "intermediate_size": 4096,
}  # fmt: skip


def _bert(kind, **options):
    return getattr(transformers, kind)(transformers.BertConfig(**options, num_labels=1000))


def _roberta(kind, **options):
    config = transformers.RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
        num_labels=1000, **options,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


# Name, origin, reference, whether it has our head.
CASES = [
    ("bert_base_uncased", "transformers", lambda: _bert("BertForPreTraining"), False),
    ("bert_base_uncased", "transformers", lambda: _bert("BertModel"), False),
    ("bert_base_uncased", "transformers", lambda: _bert("BertForSequenceClassification"), True),
    ("bert_large_uncased", "transformers", lambda: _bert("BertForPreTraining", **_LARGE), False),
    ("minilm_l6", "transformers_without_pooler",
     lambda: _bert("BertModel", num_hidden_layers=6, **_MINILM), False),
    ("minilm_l12", "transformers_without_pooler",
     lambda: _bert("BertModel", num_hidden_layers=12, **_MINILM), False),
    ("roberta_base", "transformers", lambda: _roberta("RobertaModel"), False),
    ("roberta_base", "transformers_classifier",
     lambda: _roberta("RobertaForSequenceClassification"), True),
    ("roberta_large", "transformers_classifier",
     lambda: _roberta("RobertaForSequenceClassification", **_LARGE), True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "origin", "reference", "headed"), CASES,
    ids=[f"{n}-{o}-{i}" for i, (n, o, *_) in enumerate(CASES)],
)  # fmt: skip
def test_every_tensor_has_its_leaf_and_every_leaf_its_tensor(name, origin, reference, headed):
    with torch.device("meta"):
        state = {n: tuple(t.shape) for n, t in reference().state_dict().items()}
    assert_shapes(name, origin, state, headed=headed)


def test_tensors_of_pre_training_are_the_ones_dropped():
    with torch.device("meta"):
        bert = _bert("BertForPreTraining", num_hidden_layers=1).state_dict()
        roberta = _roberta("RobertaForMaskedLM", num_hidden_layers=1).state_dict()
    for family, state, prefix in (("bert", bert, "cls."), ("roberta", roberta, "lm_head.")):
        names = map_of(family, "transformers")
        assert all(names.targets(n) or names.ignored(n) is not None for n in state)
        dropped = {n for n in state if names.ignored(n) is not None}
        assert dropped == {n for n in state if n.startswith(prefix)}
