"""Loads the study of a config file."""

from __future__ import annotations

from finetune_jax.ablation.study import Study
from finetune_jax.cli import call_config_file
from finetune_jax.errors import UserError


def load_study(path: str) -> Study:
    """The study that ``get_study()`` of a config file returns.

    Raises:
      UserError: the file has no such function, or the function returns something else.
    """
    study = call_config_file(path, "get_study")
    if not isinstance(study, Study):
        raise UserError(
            f"{path}: get_study() must return a finetune_jax.ablation.study.Study, found "
            f"{type(study).__name__}"
        )
    return study
