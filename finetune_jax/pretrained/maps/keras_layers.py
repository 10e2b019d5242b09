"""Rules of Keras' layers, shared by the families that Keras has. Their layouts equal ours."""

from finetune_jax.pretrained.names import Rule

# Keras' kernels of depthwise convolutions.
DEPTHWISE = "h w channels multiplier -> h w multiplier channels"


def keras_layer(source: str, leaf: str) -> tuple[Rule, ...]:
    """Rules of a layer with kernel and bias, from templates of Keras' name and of our module."""
    return (
        Rule(f"{source}/kernel", f"params/{leaf}/kernel"),
        Rule(f"{source}/bias", f"params/{leaf}/bias"),
    )


def keras_batch_norm(source: str, leaf: str) -> tuple[Rule, ...]:
    """Rules of a BatchNormalization, from templates of Keras' name and of our module."""
    return (
        Rule(f"{source}/gamma", f"params/{leaf}/scale"),
        Rule(f"{source}/beta", f"params/{leaf}/bias"),
        Rule(f"{source}/moving_mean", f"batch_stats/{leaf}/mean"),
        Rule(f"{source}/moving_variance", f"batch_stats/{leaf}/var"),
    )
