"""Which weight gets which format: rules such as ``block_.*=int8, head=keep, .*=int4``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from finetune_jax.errors import UserError, nearest
from finetune_jax.quantization.formats import Format, parse_format

KEEP = "keep"
"""In place of a format: the weights that a rule names stay as they are."""

_FORMAT = r"\w*(?:\(.*\))?"
# Commas between rules: not those of a repetition, "{1,2}", or between parentheses.
_SEPARATOR = re.compile(r",\s*(?![^(]*\))(?![^{]*\})")


@dataclasses.dataclass(frozen=True)
class Rule:
    """A regular expression and a format.

    Attributes:
      pattern: matches the whole name of a stage, such as ``block_.*``, or the whole path of a leaf.
      format: format of the weights that the pattern matches; None keeps them.
    """

    pattern: str
    format: Format | None

    def __str__(self) -> str:
        return f"{self.pattern}={self.format or KEEP}"

    def matches(self, path: str) -> bool:
        """Whether the rule names a leaf, by its path or by its stage."""
        return any(re.fullmatch(self.pattern, name) for name in (path, path.split("/", 1)[0]))


def parse_rules(text: str, where: str) -> tuple[Rule, ...]:
    """The rules of a text: one format for all weights, or ``PATTERN=FORMAT`` joined by commas.

    Args:
      text: such as ``int8``, or ``head=keep, .*=int4(tile=32)``.
      where: name of the flag, for messages.

    Raises:
      UserError: an unknown format, or a pattern that is no regular expression.
    """
    rules = []
    for part in _SEPARATOR.split(text.strip()):
        found = re.fullmatch(rf"(?:(?P<pattern>.+)=)?\s*(?P<format>{_FORMAT})\s*", part)
        if found is None:
            raise UserError(
                f"{where}: expected a format, or PATTERN=FORMAT such as head=keep, found {part!r}"
            )
        pattern, name = found["pattern"] or ".*", found["format"]
        try:
            re.compile(pattern.strip())
        except re.error as error:
            raise UserError(f"{where}: {pattern!r} is no regular expression: {error}") from None
        format_ = None if name == KEEP else parse_format(name, where)
        rules.append(Rule(pattern.strip(), format_))
    return tuple(rules)


def formats_by_leaf(rules: Iterable[Rule], weights: Iterable[str], where: str) -> dict[str, Format]:
    """The format of each weight, by its path; weights that are kept are not in the result.

    The first rule that matches a weight decides.

    Args:
      rules: the rules.
      weights: paths of all weights that can be quantized.
      where: name of the flag, for messages.

    Raises:
      UserError: a rule that names no weight, or only weights that earlier rules name.
    """
    paths = list(weights)
    left, found = paths, dict[str, Format]()
    for rule in rules:
        mine = [path for path in left if rule.matches(path)]
        if not mine:
            named = [path for path in paths if rule.matches(path)]
            stages = dict.fromkeys(path.split("/", 1)[0] for path in paths)
            reason = (
                "earlier rules name all of its weights; put it first"
                if named
                else f"no stage and no weight has this name; the stages with weights are "
                f"{', '.join(stages)}.{nearest(rule.pattern, stages)}"
            )
            raise UserError(f"{where}: the rule {str(rule)!r} has no effect: {reason}")
        left = [path for path in left if path not in mine]
        if rule.format:
            found |= dict.fromkeys(mine, rule.format)
    return found
