"""Name maps of Vision Transformers for the npz files of Flax.

google-research/vision_transformer (AugReg) and google-research/big_vision.
"""

import dataclasses

from finetune_jax.pretrained.names import NameMap, Rule

_QKV = ("query", "key", "value")
_TEXT_TOWER = "text tower"


def _flax(source: str, leaf: str, weight: str = "kernel") -> tuple[Rule, ...]:
    return (
        Rule(f"{source}/{weight}", f"params/{leaf}/{weight}"),
        Rule(f"{source}/bias", f"params/{leaf}/bias"),
    )


def _flax_attention(source: str, leaf: str) -> tuple[Rule, ...]:
    """Rules of MultiHeadDotProductAttention, whose heads are a separate axis."""
    return (
        *(
            rule
            for name in _QKV
            for rule in (
                Rule(f"{source}/{name}/kernel", f"params/{leaf}/{name}/kernel",
                     "in heads size -> in (heads size)"),
                Rule(f"{source}/{name}/bias", f"params/{leaf}/{name}/bias",
                     "heads size -> (heads size)"),
            )
        ),
        Rule(f"{source}/out/kernel", f"params/{leaf}/out/kernel",
             "heads size out -> (heads size) out"),
        Rule(f"{source}/out/bias", f"params/{leaf}/out/bias"),
    )  # fmt: skip


def _flax_block(source: str, leaf: str, attention: int, norm: int, mlp: int) -> tuple[Rule, ...]:
    """Rules of an Encoder1DBlock; Flax numbers its unnamed modules."""
    return (
        *_flax(f"{source}/LayerNorm_0", f"{leaf}/norm1", "scale"),
        *_flax_attention(f"{source}/MultiHeadDotProductAttention_{attention}", f"{leaf}/attn"),
        *_flax(f"{source}/LayerNorm_{norm}", f"{leaf}/norm2", "scale"),
        *_flax(f"{source}/MlpBlock_{mlp}/Dense_0", f"{leaf}/mlp_in"),
        *_flax(f"{source}/MlpBlock_{mlp}/Dense_1", f"{leaf}/mlp_out"),
    )


def _big_vision(prefix: str) -> tuple[Rule, ...]:
    """Rules for one tensor per layer, and for tensors that stack all layers, as scan saves them.

    The first form is used for writing.
    """
    probe, layers = f"{prefix}MAPHead_0", f"{prefix}Transformer/encoderblock"
    scanned = _flax_block(layers, "block_{i}", 0, 1, 0)
    return (
        *_flax(f"{prefix}embedding", "stem/embedding"),
        Rule(f"{prefix}cls", "params/stem/class_token"),
        Rule(f"{prefix}pos_embedding", "params/stem/position_embedding"),
        *_flax_block(f"{layers}_{{i}}", "block_{i}", 0, 1, 0),
        *(dataclasses.replace(rule, source=f"{rule.source}[{{i}}]") for rule in scanned),
        *_flax(f"{prefix}Transformer/encoder_norm", "norm", "scale"),
        Rule(f"{probe}/probe", "params/map_pool/probe"),
        *_flax_attention(f"{probe}/MultiHeadDotProductAttention_0", "map_pool/attn"),
        *_flax(f"{probe}/LayerNorm_0", "map_pool/norm", "scale"),
        *_flax(f"{probe}/MlpBlock_0/Dense_0", "map_pool/mlp_in"),
        *_flax(f"{probe}/MlpBlock_0/Dense_1", "map_pool/mlp_out"),
        *_flax(f"{prefix}head", "head"),
    )


_PRE_LOGITS = "a hidden layer of pre-training before the head"

FLAX_MAPS = (
    NameMap(
        "vit",
        "vit_jax",
        (
            *_flax("embedding", "stem/embedding"),
            Rule("cls", "params/stem/class_token"),
            Rule("Transformer/posembed_input/pos_embedding", "params/stem/position_embedding"),
            *_flax_block("Transformer/encoderblock_{i}", "block_{i}", 1, 2, 3),
            *_flax("Transformer/encoder_norm", "norm", "scale"),
            *_flax("head", "head"),
        ),
        ignore=(("pre_logits/{path}", _PRE_LOGITS),),
        position="linear_corners",
    ),
    NameMap(
        "vit", "big_vision", _big_vision("params/"), prefix="params/", position="linear_corners"
    ),
    # A model with an image tower and a text tower.
    NameMap(
        "vit", "big_vision_two_towers", _big_vision("params/img/"),
        ignore=tuple((f"params/{n}", _TEXT_TOWER) for n in ("txt/{path}", "t", "b")),
        prefix="params/", position="linear_corners",
    ),
)  # fmt: skip
