"""Names of the Vision Transformers."""

from finetune_jax.pretrained.layout import CONV, DENSE
from finetune_jax.pretrained.names import NameMap, Rule, layer, native

_QKV = tuple(
    rule
    for i, name in enumerate(("query", "key", "value"))
    for rule in (
        Rule("blocks.{i}.attn.qkv.weight", f"params/block_{{i}}/attn/{name}/kernel", DENSE, (i, 3)),
        Rule("blocks.{i}.attn.qkv.bias", f"params/block_{{i}}/attn/{name}/bias", "", (i, 3)),
    )
)

# timm.models.vision_transformer.
_TIMM = NameMap(
    "vit",
    "timm",
    (
        *layer("patch_embed.proj", "stem/embedding", CONV),
        Rule("cls_token", "params/stem/class_token"),
        Rule("pos_embed", "params/stem/position_embedding"),
        *layer("blocks.{i}.norm{j}", "block_{i}/norm{j}", weight="scale"),
        *_QKV,
        *layer("blocks.{i}.attn.proj", "block_{i}/attn/out", DENSE),
        *layer("blocks.{i}.mlp.fc1", "block_{i}/mlp_in", DENSE),
        *layer("blocks.{i}.mlp.fc2", "block_{i}/mlp_out", DENSE),
        *layer("norm", "norm", weight="scale"),
        *layer("head", "head", DENSE),
    ),
)

MAPS = (native("vit"), _TIMM)
