"""The configs that ship with the package, which a command finds by their names without a path.

``--config=tasks/digits_vit`` is the file ``configs/tasks/digits_vit.py`` of the repository. An
installed package holds the files in its own folder ``configs``. In both cases, a config imports its
sibling as ``finetune_jax.configs.tasks._digits``, and a copy of a config works in any folder.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent
# In a checkout and in an editable installation, the files are where the repository has them.
_FOLDER = next(
    folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()
)
# Submodules are found here, as in a package's folder.
__path__ = [str(_FOLDER)]


def shipped() -> dict[str, Path]:
    """The shipped config files by name, such as ``tasks/digits_vit``."""
    files = sorted(_FOLDER.rglob("[!_]*.py"))
    return {file.relative_to(_FOLDER).with_suffix("").as_posix(): file for file in files}
