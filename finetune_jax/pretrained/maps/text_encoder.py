"""Name maps of the text encoders."""

from finetune_jax.pretrained.layout import DENSE
from finetune_jax.pretrained.names import NameMap, Rule, layer, native


def _encoder(prefix: str) -> tuple[Rule, ...]:
    """Rules of BertModel and RobertaModel of transformers, without a pooler."""
    stem, block = f"{prefix}embeddings", f"{prefix}encoder.layer.{{i}}"
    norms = (
        (f"{stem}.LayerNorm", "stem/norm"),
        (f"{block}.attention.output.LayerNorm", "block_{i}/norm1"),
        (f"{block}.output.LayerNorm", "block_{i}/norm2"),
    )
    return (
        Rule(f"{stem}.word_embeddings.weight", "params/stem/word/embedding"),
        Rule(f"{stem}.position_embeddings.weight", "params/stem/position/embedding"),
        Rule(f"{stem}.token_type_embeddings.weight", "params/stem/token_type/embedding"),
        *layer(f"{block}.attention.self.query", "block_{i}/attn/query", DENSE),
        *layer(f"{block}.attention.self.key", "block_{i}/attn/key", DENSE),
        *layer(f"{block}.attention.self.value", "block_{i}/attn/value", DENSE),
        *layer(f"{block}.attention.output.dense", "block_{i}/attn/out", DENSE),
        *layer(f"{block}.intermediate.dense", "block_{i}/mlp_in", DENSE),
        *layer(f"{block}.output.dense", "block_{i}/mlp_out", DENSE),
        *(rule for source, leaf in norms for rule in layer(source, leaf, weight="scale")),
        # Names in files that were converted from TensorFlow in 2018, such as bert-base-uncased.
        *(
            Rule(f"{source}.{theirs}", f"params/{leaf}/{ours}")
            for source, leaf in norms
            for theirs, ours in (("gamma", "scale"), ("beta", "bias"))
        ),
    )


def _pooler(source: str) -> tuple[Rule, ...]:
    return layer(source, "pooler/dense", DENSE)


_NUMBERS = ("{path}.position_ids", "the numbers 0, 1, 2, …: a constant of the code")
_NEXT_SENTENCE = ("cls.{path}", "heads of pre-training: masked words and next sentence")
_MASKED_WORDS = ("lm_head.{path}", "head of pre-training: masked words")
_NO_POOLER = "features are the tokens themselves: this model has no pooler"

_BERT, _ROBERTA = _encoder("bert."), _encoder("roberta.")
_HEAD = layer("classifier", "head", DENSE)

MAPS = (
    native("bert"),
    # This name map comes first: without a pooler in the model, both name maps fit equally.
    NameMap(
        "bert",
        "transformers_without_pooler",
        (*_BERT, *_HEAD),
        ignore=(("bert.pooler.{path}", _NO_POOLER), _NUMBERS, _NEXT_SENTENCE),
        prefix="bert.",
    ),
    NameMap(
        "bert",
        "transformers",
        (*_BERT, *_pooler("bert.pooler.dense"), *_HEAD),
        ignore=(_NUMBERS, _NEXT_SENTENCE),
        prefix="bert.",
    ),
    native("roberta"),
    NameMap(
        "roberta",
        "transformers_without_pooler",
        _ROBERTA,
        ignore=(("roberta.pooler.{path}", _NO_POOLER), _NUMBERS, _MASKED_WORDS),
        prefix="roberta.",
    ),
    # In RobertaForSequenceClassification, the classifier includes the dense layer and the tanh.
    NameMap(
        "roberta",
        "transformers_classifier",
        (*_ROBERTA, *_pooler("classifier.dense"), *layer("classifier.out_proj", "head", DENSE)),
        ignore=(_NUMBERS,),
        prefix="roberta.",
    ),
    NameMap(
        "roberta",
        "transformers",
        (*_ROBERTA, *_pooler("roberta.pooler.dense")),
        ignore=(_NUMBERS, _MASKED_WORDS),
        prefix="roberta.",
    ),
)
