"""Name maps of the MLP-Mixers."""

from finetune_jax.pretrained.layout import CONV, DENSE
from finetune_jax.pretrained.names import NameMap, Rule, layer, native

# timm.models.mlp_mixer.
_TIMM = NameMap(
    "mixer",
    "timm",
    (
        *layer("stem.proj", "stem/embedding", CONV),
        *layer("blocks.{i}.norm{j}", "block_{i}/norm{j}", weight="scale"),
        *layer("blocks.{i}.mlp_tokens.fc1", "block_{i}/token_in", DENSE),
        *layer("blocks.{i}.mlp_tokens.fc2", "block_{i}/token_out", DENSE),
        *layer("blocks.{i}.mlp_channels.fc1", "block_{i}/mlp_in", DENSE),
        *layer("blocks.{i}.mlp_channels.fc2", "block_{i}/mlp_out", DENSE),
        *layer("norm", "norm", weight="scale"),
        *layer("head", "head", DENSE),
    ),
)

# google-research/vision_transformer, in npz files. Flax numbers layers without a name.
_VIT_JAX = NameMap(
    "mixer",
    "vit_jax",
    tuple(
        Rule(f"{source}/{kind}", f"params/{leaf}/{kind}")
        for source, leaf, weight in (
            ("stem", "stem/embedding", "kernel"),
            ("MixerBlock_{i}/LayerNorm_{j}", "block_{i}/norm{j+1}", "scale"),
            ("MixerBlock_{i}/token_mixing/Dense_0", "block_{i}/token_in", "kernel"),
            ("MixerBlock_{i}/token_mixing/Dense_1", "block_{i}/token_out", "kernel"),
            ("MixerBlock_{i}/channel_mixing/Dense_0", "block_{i}/mlp_in", "kernel"),
            ("MixerBlock_{i}/channel_mixing/Dense_1", "block_{i}/mlp_out", "kernel"),
            ("pre_head_layer_norm", "norm", "scale"),
            ("head", "head", "kernel"),
        )
        for kind in (weight, "bias")
    ),
)

MAPS = (native("mixer"), _TIMM, _VIT_JAX)
