"""Name maps of the Vision Transformers.

The table of an origin is composed of parts, because several origins share some of their names.
"""

from finetune_jax.pretrained.layout import CONV, DENSE
from finetune_jax.pretrained.maps.vit_flax import FLAX_MAPS
from finetune_jax.pretrained.names import NameMap, Rule, layer, native

# Layouts of towers whose class token and positions have no batch axis.
_CLASS, _POSITIONS = "width -> 1 1 width", "n width -> 1 n width"
_QKV = ("query", "key", "value")
_TEXT_TOWER = "text tower"
_MASK = "replaces masked patches, in pre-training only"
_POOLER = "a dense layer and tanh that the classifier does not read"
_NUMBERS = ("{path}.position_ids", "the numbers 0, 1, 2, …: a constant of the code")
_NO_BIAS = (("params/head/bias", 0.0, "the projection has no bias"),)


def _norm(source: str, leaf: str) -> tuple[Rule, ...]:
    return layer(source, leaf, weight="scale")


def _joint(weight: str, bias: str, leaf: str, names: tuple[str, ...] = _QKV) -> tuple[Rule, ...]:
    """Rules of a weight and a bias that concatenate several projections."""
    count = len(names)
    return tuple(
        rule
        for i, name in enumerate(names)
        for rule in (
            Rule(weight, f"params/{leaf}/{name}/kernel", DENSE, (i, count)),
            Rule(bias, f"params/{leaf}/{name}/bias", "", (i, count)),
        )
    )


def _dense(source: str, leaf: str, pairs: dict[str, str]) -> tuple[Rule, ...]:
    """Rules of dense layers in a module; `pairs` is ``{their name: our name}``."""
    return tuple(r for a, b in pairs.items() for r in layer(f"{source}.{a}", f"{leaf}/{b}", DENSE))


# --- timm.models.vision_transformer, and facebookresearch/dinov2, most of whose names are equal.


def _timm(
    registers: str, final_norm: str = "norm", mlp_in: str = "fc1", mlp_out: str = "fc2"
) -> tuple[Rule, ...]:
    return (
        *layer("patch_embed.proj", "stem/embedding", CONV),
        Rule("cls_token", "params/stem/class_token"),
        *([Rule(registers, "params/stem/register_tokens")] if registers else []),
        Rule("pos_embed", "params/stem/position_embedding"),
        *_norm("norm_pre", "stem/norm"),
        *_norm("blocks.{i}.norm{j}", "block_{i}/norm{j}"),
        *_joint("blocks.{i}.attn.qkv.weight", "blocks.{i}.attn.qkv.bias", "block_{i}/attn"),
        *layer("blocks.{i}.attn.proj", "block_{i}/attn/out", DENSE),
        Rule("blocks.{i}.ls{j}.gamma", "params/block_{i}/layer_scale{j}"),
        *_dense("blocks.{i}.mlp", "block_{i}", {mlp_in: "mlp_in", mlp_out: "mlp_out"}),
        *_norm(final_norm, "norm"),
        Rule("attn_pool.latent", "params/map_pool/probe"),
        *layer("attn_pool.q", "map_pool/attn/query", DENSE),
        *_joint("attn_pool.kv.weight", "attn_pool.kv.bias", "map_pool/attn", ("key", "value")),
        *layer("attn_pool.proj", "map_pool/attn/out", DENSE),
        *_norm("attn_pool.norm", "map_pool/norm"),
        *_dense("attn_pool.mlp", "map_pool", {"fc1": "mlp_in", "fc2": "mlp_out"}),
    )  # fmt: skip


_TIMM_HEAD = layer("head", "head", DENSE)
_TWO_HEADS = "one of two heads, whose mean is the original's output"


def _two_heads(*heads: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"{head}.{kind}", _TWO_HEADS) for head in heads for kind in ("weight", "bias"))


_TIMM_MAPS = (
    NameMap("vit", "timm", (*_timm("reg_token"), *_TIMM_HEAD), pooled_norm=False),
    # Models that average the tokens before the final norm (global_pool="avg").
    NameMap(
        "vit", "timm_fc_norm", (*_timm("reg_token", "fc_norm"), *_TIMM_HEAD), pooled_norm=True
    ),
    NameMap(
        "vit", "timm_distilled", _timm("dist_token"),
        ignore=_two_heads("head", "head_dist"),
    ),
    *(
        NameMap(
            "vit", f"facebook{with_registers}{giant}", _timm(registers, "norm", *inner),
            ignore=(("mask_token", _MASK),), position=position,
        )
        for with_registers, registers, position in (
            ("", "", "bicubic_torch"), ("_registers", "register_tokens", "bicubic_antialias")
        )
        for giant, inner in (("", ("fc1", "fc2")), ("_giant", ("w12", "w3")))
    ),
)  # fmt: skip


# --- transformers. Published files have the names of version 4. The rules with the module names of
# version 5, which torch.save of a state dict writes, come later and are used for reading only.

_HUB_ATTENTION = {
    "attention.attention.query": "attn/query", "attention.attention.key": "attn/key",
    "attention.attention.value": "attn/value", "attention.output.dense": "attn/out",
}  # fmt: skip
_NEW_ATTENTION = {
    "attention.q_proj": "attn/query", "attention.k_proj": "attn/key",
    "attention.v_proj": "attn/value", "attention.o_proj": "attn/out",
}  # fmt: skip
_MLP = {"mlp.fc1": "mlp_in", "mlp.fc2": "mlp_out"}


def _embeddings(prefix: str, registers: str = "") -> tuple[Rule, ...]:
    tokens = f"{prefix}embeddings.{registers}"
    return (
        *layer(f"{prefix}embeddings.patch_embeddings.projection", "stem/embedding", CONV),
        Rule(f"{prefix}embeddings.cls_token", "params/stem/class_token"),
        *([Rule(tokens, "params/stem/register_tokens")] if registers else []),
        Rule(f"{prefix}embeddings.position_embeddings", "params/stem/position_embedding"),
    )


def _transformers(prefix: str) -> tuple[Rule, ...]:
    """Rules of ViTModel and DeiTModel; the second token of DeiT is the distillation token."""
    old, new = f"{prefix}encoder.layer.{{i}}", f"{prefix}layers.{{i}}"
    inner = {"intermediate.dense": "mlp_in", "output.dense": "mlp_out"}
    return (
        *_embeddings(prefix, "distillation_token"),
        *_dense(old, "block_{i}", {**_HUB_ATTENTION, **inner}),
        *_dense(new, "block_{i}", {**_NEW_ATTENTION, **_MLP}),
        *(
            rule
            for block in (old, new)
            for name, leaf in (("layernorm_before", "norm1"), ("layernorm_after", "norm2"))
            for rule in _norm(f"{block}.{name}", f"block_{{i}}/{leaf}")
        ),
        *_norm(f"{prefix}layernorm", "norm"),
    )


def _dinov2(prefix: str, registers: str, inner: dict[str, str]) -> tuple[Rule, ...]:
    """Rules of Dinov2Model and Dinov2WithRegistersModel."""
    block = f"{prefix}encoder.layer.{{i}}"
    return (
        *_embeddings(prefix, registers),
        *_dense(block, "block_{i}", {**_HUB_ATTENTION, **_NEW_ATTENTION, **inner}),
        *_norm(f"{block}.norm{{j}}", "block_{i}/norm{j}"),
        Rule(f"{block}.layer_scale{{j}}.lambda1", "params/block_{i}/layer_scale{j}"),
        *_norm(f"{prefix}layernorm", "norm"),
    )


def _towers(stem: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Rules of CLIPVisionModel and SiglipVisionModel, which have the same prefix."""
    names = {"self_attn.q_proj": "attn/query", "self_attn.k_proj": "attn/key"}
    names |= {"self_attn.v_proj": "attn/value", "self_attn.out_proj": "attn/out"}
    block = "vision_model.encoder.layers.{i}"
    return (
        *stem,
        Rule("vision_model.embeddings.position_embedding.weight",
             "params/stem/position_embedding", _POSITIONS),
        *_dense(block, "block_{i}", names | _MLP),
        *_norm(f"{block}.layer_norm{{j}}", "block_{i}/norm{j}"),
        *_norm("vision_model.post_layernorm", "norm"),
    )  # fmt: skip


_PATCHES, _PROBE = "vision_model.embeddings.patch_embedding", "vision_model.head"
_CLIP = (
    *_towers((
        Rule("vision_model.embeddings.class_embedding", "params/stem/class_token", _CLASS),
        Rule(f"{_PATCHES}.weight", "params/stem/embedding/kernel", CONV),
    )),
    *_norm("vision_model.pre_layrnorm", "stem/norm"),
    Rule("visual_projection.weight", "params/head/kernel", DENSE),
)  # fmt: skip
_SIGLIP = (
    *_towers(layer(_PATCHES, "stem/embedding", CONV)),
    Rule(f"{_PROBE}.probe", "params/map_pool/probe"),
    *_joint(
        f"{_PROBE}.attention.in_proj_weight", f"{_PROBE}.attention.in_proj_bias", "map_pool/attn"
    ),
    *layer(f"{_PROBE}.attention.out_proj", "map_pool/attn/out", DENSE),
    *_norm(f"{_PROBE}.layernorm", "map_pool/norm"),
    *_dense(_PROBE, "map_pool", _MLP),
)
_TEXT = (("text_model.{path}", _TEXT_TOWER), ("logit_scale", _TEXT_TOWER))
_CLASSIFIER = layer("classifier", "head", DENSE)

_TRANSFORMERS_MAPS = (
    NameMap(
        "vit", "transformers", (*_transformers("vit."), *_CLASSIFIER),
        ignore=(("vit.pooler.{path}", _POOLER),), prefix="vit.", position="bicubic_torch",
    ),
    NameMap(
        "vit", "transformers_deit", (*_transformers("deit."), *_CLASSIFIER),
        ignore=(
            ("deit.pooler.{path}", _POOLER),
            *_two_heads("cls_classifier", "distillation_classifier"),
        ),
        prefix="deit.", position="bicubic_torch",
    ),
    *(
        NameMap(
            "vit", f"transformers_{origin}{size}",
            (*_dinov2(f"{origin}.", registers, inner), *_CLASSIFIER),
            ignore=((f"{origin}.embeddings.mask_token", _MASK),), prefix=f"{origin}.",
            position=position,
        )
        for origin, registers, position in (
            ("dinov2", "", "bicubic_torch"),
            ("dinov2_with_registers", "register_tokens", "bicubic_antialias"),
        )
        for size, inner in (
            ("", _MLP), ("_giant", {"mlp.weights_in": "mlp_in", "mlp.weights_out": "mlp_out"}),
        )
    ),
    NameMap(
        "vit", "transformers_clip", _CLIP,
        ignore=(*_TEXT, ("text_projection.weight", _TEXT_TOWER), _NUMBERS), prefix="vision_model.",
        constants=_NO_BIAS, position="bicubic_torch",
    ),
    NameMap(
        "vit", "transformers_siglip", _SIGLIP,
        ignore=(
            *_TEXT, ("logit_bias", _TEXT_TOWER), _NUMBERS,
            ("classifier.{path}", "reads the mean of the tokens, and not the output of the probe"),
        ),
        prefix="vision_model.", position="bicubic_torch",
    ),
)  # fmt: skip


# --- torchvision.models.vision_transformer. Published files have the names linear_1 and linear_2,
# which torchvision renames when it reads them.

_ENCODER = "encoder.layers.encoder_layer_{i}"
_TORCHVISION = NameMap(
    "vit",
    "torchvision",
    (
        *layer("conv_proj", "stem/embedding", CONV),
        Rule("class_token", "params/stem/class_token"),
        Rule("encoder.pos_embedding", "params/stem/position_embedding"),
        *_norm(f"{_ENCODER}.ln_{{j}}", "block_{i}/norm{j}"),
        *_joint(
            f"{_ENCODER}.self_attention.in_proj_weight", f"{_ENCODER}.self_attention.in_proj_bias",
            "block_{i}/attn",
        ),
        *layer(f"{_ENCODER}.self_attention.out_proj", "block_{i}/attn/out", DENSE),
        *_dense(f"{_ENCODER}.mlp", "block_{i}", {"0": "mlp_in", "3": "mlp_out"}),
        *_dense(f"{_ENCODER}.mlp", "block_{i}", {"linear_1": "mlp_in", "linear_2": "mlp_out"}),
        *_norm("encoder.ln", "norm"),
        *layer("heads.head", "head", DENSE),
    ),
    position="bicubic_torch_corners",
)  # fmt: skip


# --- OpenAI's CLIP and open_clip: the image tower.

_RESBLOCK = "visual.transformer.resblocks.{i}"

_OPENAI = NameMap(
    "vit",
    "openai",
    (
        Rule("visual.conv1.weight", "params/stem/embedding/kernel", CONV),
        Rule("visual.class_embedding", "params/stem/class_token", _CLASS),
        Rule("visual.positional_embedding", "params/stem/position_embedding", _POSITIONS),
        *_norm("visual.ln_pre", "stem/norm"),
        *_norm(f"{_RESBLOCK}.ln_{{j}}", "block_{i}/norm{j}"),
        *_joint(
            f"{_RESBLOCK}.attn.in_proj_weight", f"{_RESBLOCK}.attn.in_proj_bias", "block_{i}/attn"
        ),
        *layer(f"{_RESBLOCK}.attn.out_proj", "block_{i}/attn/out", DENSE),
        *_dense(f"{_RESBLOCK}.mlp", "block_{i}", {"c_fc": "mlp_in", "c_proj": "mlp_out"}),
        *_norm("visual.ln_post", "norm"),
        Rule("visual.proj", "params/head/kernel"),
    ),
    ignore=(
        *((f"{n}.{{path}}", _TEXT_TOWER) for n in ("transformer", "token_embedding", "ln_final")),
        *((n, _TEXT_TOWER) for n in ("positional_embedding", "text_projection", "logit_scale")),
        *(
            (name, "a constant of the code, which TorchScript stores")
            for name in ("input_resolution", "context_length", "vocab_size")
        ),
    ),
    constants=_NO_BIAS,
)  # fmt: skip

MAPS = (native("vit"), *_TIMM_MAPS, *_TRANSFORMERS_MAPS, _TORCHVISION, _OPENAI, *FLAX_MAPS)
