"""Folders that sentence-transformers opens: an encoder, its pooling, and the head as a module.

The class reads what no class of transformers has: a head on the mean of the tokens, or on the first
token alone. transformers opens the encoder in the same folder.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune_jax.data.text import TextPreprocess
from finetune_jax.export.formats import Model
from finetune_jax.export.hub.destination import DENSE, Destination, NotThere, label_names
from finetune_jax.export.hub.processors import tokenizer_files
from finetune_jax.export.hub.transformers import encoder
from finetune_jax.models.text_encoder import TextEncoder

LIBRARY = "sentence-transformers"

_MODULES = "sentence_transformers.models"


def destination(model: Model) -> Destination:
    """The folder of an encoder of texts whose features are a mean of tokens or the first token.

    Raises:
      NotThere: a model of images, or one with a pooler.
    """
    artifact = model.artifact
    module, preprocess = artifact.model.model, artifact.preprocess
    if type(module) is not TextEncoder or not isinstance(preprocess, TextPreprocess):
        raise NotThere("it has encoders of texts")
    if module.pooling not in ("mean", "cls"):
        raise NotThere(f"it pools without a dense layer, and this model with {module.pooling!r}")
    dense = not is_identity(artifact.variables["params"]["head"])
    kind = "Roberta" if module.from_padding else "Bert"
    files: dict[str, Any]
    files, texts = tokenizer_files(preprocess)
    names = label_names(artifact)
    width, outputs = module.width, artifact.task.head_size
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), *[("Dense", DENSE)] * dense]
    beside: dict[str, Any] = {
        "config.json": {"architectures": [f"{kind}Model"], **encoder(module), "dtype": "float32"},
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"{_MODULES}.{name}"}
            for i, (name, path) in enumerate(modules)
        ],
        "sentence_bert_config.json": {
            "max_seq_length": preprocess.size,
            "do_lower_case": False,
            # The features are the tokens themselves, so the file has no weights of a pooler.
            "model_args": {"add_pooling_layer": False},
        },
        "config_sentence_transformers.json": {
            "prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": module.pooling == "cls",
            "pooling_mode_mean_tokens": module.pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        **({f"{DENSE}/config.json": {
            "in_features": width, "out_features": outputs, "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
        }} if dense else {}),
        **({"labels.json": names} if artifact.task.labels in ("class", "classes") else {}),
    }  # fmt: skip
    files |= beside
    prefix = "roberta." if module.from_padding else "bert."
    return Destination(
        LIBRARY, f"{kind}Model", "transformers_without_pooler", files, texts, prefix, dense, False
    )


def is_identity(head: dict[str, Any]) -> bool:
    """Whether a head returns its features unchanged."""
    kernel, bias = np.asarray(head["kernel"]), np.asarray(head["bias"])
    square = kernel.shape[0] == kernel.shape[1]
    return square and np.array_equal(kernel, np.eye(len(kernel))) and not bias.any()
