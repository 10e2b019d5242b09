"""A checkpoint belongs to the config of the run that wrote it, in a folder that can keep it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from finetune_jax.config import default, to_json
from finetune_jax.errors import UserError
from finetune_jax.setup import Setup
from finetune_jax.training.folder import lock_workdir, require_plain
from finetune_jax.training.preparing import _require_own


def test_a_checkpoint_of_a_run_of_another_config_is_refused(tmp_path):
    config = default()
    setup = cast(Setup, SimpleNamespace(config=config))
    meta: dict[str, Any] = {"next_step": 3, "config": to_json(config)}
    _require_own(tmp_path, meta, setup)
    _require_own(tmp_path, {"next_step": 3}, setup)  # of an earlier version
    config.train.epochs, config.log.every_steps = 99.0, 7  # a longer run, and what it logs
    config.data.data_dir = "/elsewhere"
    _require_own(tmp_path, meta, setup)
    config.seed = 1
    with pytest.raises(UserError, match="the checkpoint at step 3 is of a run of another config"):
        _require_own(tmp_path, meta, setup)


def test_a_folder_in_which_checkpoints_would_be_incomplete_is_refused(tmp_path):
    for name in ("run [1]", "data[v2]/run"):
        with pytest.raises(UserError, match=r"use a path without \[ and \]"):
            lock_workdir(tmp_path / name)
        assert not (tmp_path / name).exists()
    for name in ("my run", "what?", "a*b", "half[", "ü,;(1)"):
        require_plain(tmp_path / name)
