"""The record of a group of arms with which an interrupted group continues to the same bits.

Arms whose steps are one program round their results differently from arms that train one after
another, and so do groups of other sizes. The size of a group depends on the free memory, and the
choice of the program on the measured time. So the first start of a group records both in the folder
of every arm, and a continued group reads the record instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from finetune_jax import schema
from finetune_jax.errors import UserError
from finetune_jax.files import read_json, require_seal, seal, write_json
from finetune_jax.progress import say
from finetune_jax.training.checkpoint_folder import set_damaged_aside, steps_in

FILE = "group.json"
"""Name of the record in the folder of an arm."""


@dataclasses.dataclass
class GroupRecord:
    """How a group of arms is trained.

    Attributes:
      arms: number of arms of the same structure, which decides what the arms cache.
      members: names of the folders of the arms that advance together.
      fused: whether the step is one program for all arms, by name of the step.
    """

    arms: int
    members: list[str]
    fused: dict[str, bool] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, workdir: Path) -> GroupRecord | None:
        """Returns the record in the folder of an arm; None without a valid record."""
        path = workdir / FILE
        if not path.exists():
            return None
        try:
            content = require_seal(read_json(path), str(path))
            record = cls(**schema.options_of(cls, content, str(path)))
            if workdir.name not in record.members:
                raise UserError(f"{path}: the record of another arm")
            return record
        except UserError as error:
            say(f"{error}; the last bits of the arms may differ from those of an uninterrupted run")
            return None

    def write(self, workdirs: Sequence[Path]) -> None:
        """Writes the record to the folders of the arms; an arm that failed early has no folder."""
        for workdir in filter(Path.is_dir, workdirs):
            write_json(workdir / FILE, seal(dataclasses.asdict(self)))


def go_back_to_common_step(workdirs: Sequence[Path], keep_last: int) -> None:
    """Removes checkpoints that some arms of a group have and others do not have yet.

    Arms save one after another. After a kill between two saves, arms at different steps would not
    train as one program. All arms can go back to the newest step that every arm holds. There may be
    no such step if arms were added to the group; all checkpoints are kept then.

    A damaged checkpoint is moved away first, because its arm cannot continue from it. An arm whose
    checkpoints are all damaged will fail by itself, so the other arms do not wait for it.

    Args:
      workdirs: folders of the arms; a folder need not exist.
      keep_last: number of checkpoints that each arm keeps. An arm with fewer checkpoints has
        removed none, so it can also go back to its start.
    """
    held = {}
    for workdir in workdirs:
        folder = workdir / "checkpoints"
        with contextlib.suppress(UserError):
            set_damaged_aside(folder)
            held[folder] = steps_in(folder)
    reachable = [{*steps, *([0] if len(steps) < keep_last else [])} for steps in held.values()]
    common = set.intersection(*reachable) if reachable else set()
    if not common:
        return
    for folder, steps in held.items():
        for step in steps:
            if step > max(common):
                shutil.rmtree(folder / str(step))
