"""Roles of the sets of weights in one file: trained weights, their average, two networks.

A checkpoint of training with an average has the trained weights (``raw``) and their average
(``ema``). Self-supervised methods have a network that is trained (``student``) and one that follows
it slowly (``teacher``). The role is in a component of the names, or in the key of a state dict.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

RAW = "raw"
# (pattern of a lower-case name, role, rank). Where the user makes no choice, the lowest rank is
# taken: trained weights before their average; DINO's teacher before its student; and in MoCo and
# BYOL the network that is trained, which their authors transfer, before the one that follows it.
_NAMES: tuple[tuple[str, str, int], ...] = (
    (r"encoder_q|query_encoder|base_encoder|online(_.*)?", "student", 1),
    (r"encoder_k|key_encoder|momentum(_.*)?|target_(encoder|network|net|model)", "teacher", 4),
    (r"teacher(_.*)?|.*_teacher", "teacher", 2),
    (r"student(_.*)?|.*_student", "student", 3),
    (r"(.*_)?(ema|swa)(_.*)?|averaged_model|shadow(_params)?|moving_averages?", "ema", 5),
)
ROLES = (RAW, "ema", "teacher", "student")


def role_of(components: Iterable[str]) -> tuple[str, int]:
    """(role, rank) of the last component that has a role; ``raw`` if none has one."""
    found = (RAW, 0)
    for component in components:
        for pattern, role, rank in _NAMES:
            if re.fullmatch(pattern, component.lower()):
                found = (role, rank)
                break
    return found
