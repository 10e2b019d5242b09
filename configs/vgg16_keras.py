"""Fine-tunes Keras' VGG-16 to handwritten digits: a new last layer, or one of three other heads.

Commands:
  python -m finetune_jax.train --config=configs/vgg16_keras.py --workdir=DIR
  python -m finetune_jax.train --config=configs/vgg16_keras.py:concat_pool --workdir=DIR \\
      --config.pretrained.path=vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5
  python -m finetune_jax.plan --config=configs/vgg16_keras.py:flatten_mlp

The argument is the head: ``last_fc_only`` (fc1 and fc2 as published), ``flatten_mlp`` (fc1 and fc2
with new random values), ``gap_linear`` or ``concat_pool``; see `finetune_jax.models.vgg`.
`keras:vgg16` is the file that keras.applications.VGG16(weights="imagenet") writes to Keras' cache.
Expected score: not run, because the run needs that file and a GPU.
"""

from finetune_jax.config import default

# The scheme by head: the convolutions are frozen, and these stages train.
SCHEMES = {
    "last_fc_only": "linear_probe",
    "flatten_mlp": "stages('fc1', 'fc2') + head",
    "gap_linear": "linear_probe",
    "concat_pool": "stages('neck') + head",
}


def get_config(head: str = "last_fc_only"):
    config = default()
    config.scheme = SCHEMES[head]
    config.model.name = "vgg16_keras"
    config.model.head = head
    config.pretrained.path = "keras:vgg16"
    config.pretrained.new_head = True
    config.data.source = "digits"
    config.train.batch_size = 64
    config.train.epochs = 5.0
    config.optimizer.learning_rate = 0.01
    config.eval.batch_size = 64
    return config
