"""Preprocessing in the files of transformers: of images, and of texts with their tokenizer."""

from __future__ import annotations

import json
from typing import Any

from finetune_jax.data.preprocess import ImagePreprocess, Preprocess
from finetune_jax.data.text import TextPreprocess
from finetune_jax.export.hub.destination import NotThere

# Numbers of Pillow's filters.
_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}

# Special tokens by their text: the settings of a tokenizer of BERT, and of RoBERTa.
_ROLES = {
    "cls_token": ("[CLS]", "<s>"), "sep_token": ("[SEP]", "</s>"), "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"), "mask_token": ("[MASK]", "<mask>"), "bos_token": ("<s>",),
    "eos_token": ("</s>",),
}  # fmt: skip


def require_image(preprocess: Preprocess) -> ImagePreprocess:
    """The preprocessing of single images in RGB; NotThere for another."""
    if type(preprocess) is not ImagePreprocess:
        raise NotThere(f"it prepares no input of the kind {preprocess.kind!r}")
    if preprocess.channels != "rgb":
        raise NotThere("its preprocessing has the colours in the order red, green, blue")
    return preprocess


def image_processor(preprocess: Preprocess) -> dict[str, Any]:
    """Content of ``preprocessor_config.json``; `sizes.preprocessing.from_transformers` reads it."""
    images = require_image(preprocess)
    size = images.size
    if images.crop:
        kind = "CLIPImageProcessor"
        resized: dict[str, Any] = {
            "size": {"shortest_edge": round(size / images.crop)},
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
        }
    else:
        kind = "ViTImageProcessor"
        resized = {"size": {"height": size, "width": size}}
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        **resized,
        "resample": _FILTERS[images.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
    }


def tokenizer_files(preprocess: TextPreprocess) -> tuple[dict[str, Any], dict[str, str]]:
    """(JSON files, text files) of a tokenizer, by name."""
    content = json.loads(preprocess.tokenizer)
    vocabulary = {token["content"] for token in content.get("added_tokens", [])}
    words = content.get("model", {}).get("vocab")
    vocabulary |= set(words) if isinstance(words, dict) else set()
    roles = {
        role: next(text for text in texts if text in vocabulary)
        for role, texts in _ROLES.items()
        if any(text in vocabulary for text in texts)
    }
    truncation = content.get("truncation") or {}
    padding = content.get("padding") or {}
    config = {
        # The class that reads any tokenizer.json, whatever the model.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": preprocess.size,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "truncation_side": str(truncation.get("direction", "right")).lower(),
        "padding_side": str(padding.get("direction", "right")).lower(),
        "clean_up_tokenization_spaces": False,
        **roles,
    }
    files = {"tokenizer_config.json": config, "special_tokens_map.json": roles}
    return files, {"tokenizer.json": preprocess.tokenizer}
