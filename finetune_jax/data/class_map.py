"""The classes of a config: their order, and a file that leaves out, renames and merges classes.

The file of ``data.classes`` is a text with a line for each class, in the order of their numbers. A
line is the name of a class of the data; or a new name and, after it and separated by tabs, the
names of the classes of the data that become this class::

    cat
    dog<TAB>poodle<TAB>beagle

Examples of classes that are in no line are left out.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from finetune_jax.data.classes import RenumberedExamples, class_name, class_numbers, listed
from finetune_jax.data.examples import Examples, labels_of
from finetune_jax.data.held_out import settle_splits
from finetune_jax.data.skip import Subset
from finetune_jax.data.sources import Source, open_source, options_of
from finetune_jax.data.splits import resolve_split
from finetune_jax.errors import UserError, nearest, tuple_hint
from finetune_jax.progress import say
from finetune_jax.tables import shown


def open_configured(data: ConfigDict, task_labels: str = "") -> Source:
    """Opens the source of ``config.data`` with the classes of ``class_order`` or ``classes``.

    A validation split that the config asks for and the data does not have is held out of training,
    see `finetune_jax.data.held_out`.

    Args:
      data: ``config.data``.
      task_labels: `finetune_jax.tasks.Task.labels` of the task; empty for any labels.

    Raises:
      UserError: as `open_source`; or both keys are set, the source has no classes, the classes of
        the key and of the source do not fit, or a split has a class that ``train`` does not have.
    """
    if data.label_columns and data.source.partition(":")[0] in ("digits", "folder"):
        raise UserError(
            f"data.label_columns: {data.source!r} has no columns; expected () or a source such as "
            f"csv:PATH"
        )
    source = _with_classes(open_source(data.source, options_of(data, task_labels)), data)
    source = settle_splits(source, data)
    _require_trained(source)
    return source


def _with_classes(source: Source, data: ConfigDict) -> Source:
    if data.class_order and data.classes:
        raise UserError(
            "data.classes: the file has the order of the classes; expected an empty "
            "data.class_order"
        )
    if data.class_order:
        return _in_order(source, tuple(data.class_order))
    if data.classes:
        return _mapped(source, read_classes(data.classes), data.classes)
    return source


def read_classes(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Reads a file of classes; see the top of this module.

    Returns:
      For each class, in order: by its name, the names of the classes of the data that become this
      class.

    Raises:
      UserError: the file cannot be read, has no line, or has a name twice.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.classes: {path}: cannot be read: {error}") from None
    found: dict[str, tuple[str, ...]] = {}
    for line in filter(str.strip, text.splitlines()):
        name, *old = (class_name(part) for part in line.split("\t") if part.strip())
        if name in found:
            raise UserError(f"data.classes: {path}: the class {name!r} has two lines")
        found[name] = tuple(old) or (name,)
    counts = Counter(old for names in found.values() for old in names)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise UserError(
            f"data.classes: {path}: {twice[0]!r} is in more than one class; expected each name of "
            f"the data once"
        )
    if not found:
        raise UserError(f"data.classes: {path}: expected one class per line, found no line")
    return found


def _require_trained(source: Source) -> None:
    """Refuses classes that only other splits than ``train`` have: their outputs never train."""
    trained = source.present.get("train", frozenset())
    for split, found in source.present.items() if trained else ():
        unknown = [source.class_names[i] for i in sorted(found - trained)]
        if unknown and source.drawn:
            say(
                f"{source.name}: all examples of some classes are in {split}, so that the outputs "
                f"of these classes are never trained: {shown(listed(unknown))}"
            )
        elif unknown:
            known = [source.class_names[i] for i in sorted(trained)]
            raise UserError(
                f"data.source: {source.name!r}: {split} has classes that the training split does "
                f"not have: {listed(unknown)}; classes of training: {listed(known)}. A file named "
                f"by data.classes can leave out, rename and merge classes"
            )


def _in_order(source: Source, order: tuple[str, ...]) -> Source:
    what = "data.class_order"
    ours, theirs = (sorted(map(class_name, names)) for names in (order, source.class_names))
    if ours != theirs:
        one_text = tuple_hint(what, order[0]) if len(order) == 1 else ""
        raise UserError(
            f"{what}: expected each class once, {', '.join(map(repr, source.class_names[:20]))}; "
            f"found {', '.join(map(repr, order[:20]))}.{one_text}"
        )
    numbers = class_numbers(source.class_names, order, what)
    return _renumbered(source, order, numbers)


def _mapped(source: Source, classes: dict[str, tuple[str, ...]], path: str) -> Source:
    """The source with the classes of a file; examples of other classes are left out."""
    known = [class_name(name) for name in source.class_names]
    if not known:
        raise UserError(f"data.classes: the labels of {source.name!r} are not classes")
    numbers = {old: i for i, names in enumerate(classes.values()) for old in names}
    unknown = [old for old in numbers if old not in known]
    if unknown:
        raise UserError(
            f"data.classes: {path}: the data has no class {unknown[0]!r}."
            f"{nearest(unknown[0], known)} Classes of the data: {listed(known)}"
        )
    table = tuple(numbers.get(name, -1) for name in known)
    if min(table) >= 0:
        return _renumbered(source, tuple(classes), table)
    return _renumbered(_with_some(source, np.array(table) >= 0), tuple(classes), table)


def _renumbered(source: Source, names: tuple[str, ...], numbers: Sequence[int]) -> Source:
    numbers = tuple(numbers)
    return dataclasses.replace(
        source,
        class_names=names,
        reader=lambda split: RenumberedExamples(source.reader(split), numbers, len(names)),
        origin=f"{source.origin} classes {names} {numbers}",
        present={s: frozenset(numbers[i] for i in found) for s, found in source.present.items()},
    )


def _with_some(source: Source, kept: np.ndarray) -> Source:
    """The examples of the classes with a True in bool[classes]; says how many are left out."""
    if "mask" in source.columns:
        raise UserError(
            "data.classes: each class of a mask needs a line, because images are not left out for "
            f"some of their pixels; missing: {listed(_names(source, ~kept))}"
        )
    parts: dict[str, Subset] = {}
    for split in source.splits:
        examples = source.reader(split)
        labels = labels_of(examples)
        if labels and not isinstance(labels[0], int | np.integer):
            raise UserError(
                "data.classes: each class needs a line where an example has several classes; "
                f"missing: {listed(_names(source, ~kept))}"
            )
        parts[split] = Subset(examples, np.flatnonzero(kept[np.array(labels, int)]))
    out = sum(source.splits.values()) - sum(map(len, parts.values()))
    say(
        shown(
            f"{source.name}: data.classes leaves out {out} examples of "
            f"{int((~kept).sum())} classes: {listed(_names(source, ~kept))}"
        )
    )
    sizes = {split: len(part) for split, part in parts.items()}

    def read(split: str) -> Examples:
        ranges = resolve_split(split, sizes)
        whole = source.reader("+".join(name for name, _, _ in ranges))
        starts = np.cumsum([0, *(source.splits[name] for name, _, _ in ranges)])
        indices = [
            start + parts[name].indices[first:last]
            for start, (name, first, last) in zip(starts[:-1], ranges, strict=True)
        ]
        return Subset(whole, np.concatenate(indices))

    known = frozenset(np.flatnonzero(kept).tolist())
    present = {split: found & known for split, found in source.present.items()}
    return dataclasses.replace(source, splits=sizes, reader=read, present=present)


def _names(source: Source, which: np.ndarray) -> list[str]:
    return [source.class_names[i] for i in np.flatnonzero(which)]
