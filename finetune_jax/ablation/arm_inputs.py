"""The inputs of the arms of an ablation: data, tokenizer, weights and teacher."""

from __future__ import annotations

import copy
import json
from typing import Any

from finetune_jax import config as config_lib
from finetune_jax.identity import MadeOf, made_of, weight_digest
from finetune_jax.setup import Setup, open_setup


class ArmInputs:
    """Identifies the inputs of arms, once for all arms that name the same files."""

    def __init__(self) -> None:
        self._found: dict[str, MadeOf] = {}
        self._weights: dict[str, str | None] = {}

    def of(self, config: dict[str, Any], setup: Setup | None = None) -> MadeOf:
        """The identity of an arm's inputs (`identity.made_of`).

        Args:
          config: resolved config, as JSON.
          setup: setup of the config, if it is open.

        Raises:
          UserError: a file that the config names is missing or not readable.
        """
        key = _names(config)
        if key not in self._found:
            setup = setup or open_setup(config_lib.from_json(config))
            path = setup.config.pretrained.path
            if path not in self._weights:
                self._weights[path] = weight_digest(setup.config)
            self._found[key] = made_of(setup, self._weights[path])
        return self._found[key]


def _names(config: dict[str, Any]) -> str:
    """The part of a config that names files."""
    data = copy.deepcopy(config["data"])
    for split in ("train", "test"):  # examples may be held out for the validation split
        del data[split]
    task = {key: config["task"][key] for key in ("name", "loss")}
    parts = [data, task, config["pretrained"], config["model"]["name"]]
    return json.dumps(parts, sort_keys=True)
