"""Folders of images by class: ``folder:PATH``.

PATH has one or more of the folders ``train``, ``validation`` (or ``val``, ``valid``) and ``test``,
each with one folder per class; or PATH has one folder per class, and the images are split 80/10/10.
Images are at any depth below the folder of their class. Each split is in a fixed random order, so
that its slices, such as ``train[:90%]``, are random samples.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_jax.data.classes import class_name, sorted_names
from finetune_jax.data.examples import Examples
from finetune_jax.data.images import SUFFIXES, missing_reader
from finetune_jax.data.labels import present, say_alike
from finetune_jax.data.listing import FileList, TableExamples, order_digest
from finetune_jax.data.sources import Options, Source
from finetune_jax.data.splits import (
    SPLIT_NAMES,
    hold_out,
    resolve_split,
    shuffled,
    split_named,
)
from finetune_jax.errors import UserError, nearest
from finetune_jax.progress import say, say_once
from finetune_jax.tables import shown

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")
# Folders in which other tasks keep images and what belongs to the images, side by side.
_IMAGES, _TARGETS = ("images", "image", "imgs", "img", "jpegimages"), (
    "labels", "label", "masks", "mask", "annotations", "annotation", "segmentationclass",
)  # fmt: skip
_MASK_NAME = re.compile(
    r"(.+?)[ _-]?(?:mask|masks|seg|segmentation|gt|groundtruth|ground_truth)(?:[ _-]?\d+)?",
    re.IGNORECASE,
)
_SAVED_TO_DISK = ("dataset_dict.json", "dataset_info.json")
# Folders that Synology, macOS, Windows and Linux make beside those of a user.
_OF_SYSTEMS = ("@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found")


def open_(name: str, rest: str, options: Options) -> Source:
    """Opens a folder: lists the files and reads none.

    Raises:
      UserError: no such folder, or a split or a class of the training split without images.
    """
    root = Path(rest).expanduser()
    if not root.is_dir():
        raise UserError(f"data.source: {name!r}: {_no_folder(root)}")
    listed = _by_split(root) or {"": root}
    _require_classes(listed)
    ignored: list[str] = []
    files = {split: _by_class(folder, ignored) for split, folder in listed.items()}
    unusable = {
        split: f"data.source: {listed[split]} holds {_lying_flat(ignored, listed[split])}; "
        f"expected one folder per class with {', '.join(sorted(SUFFIXES))}"
        for split, classes in files.items()
        if not any(classes.values())
    }
    # A run may do without another split.
    if "train" in unusable or len(unusable) == len(files):
        raise UserError(next(iter(unusable.values())))
    for message in unusable.values():
        say(f"{shown(message)}; this split is left out")
    files = {split: classes for split, classes in files.items() if split not in unusable}
    if ignored:
        some = ", ".join(ignored[:5]) + (", …" if len(ignored) > 5 else "")
        what = f"{len(ignored)} files are not images by name, or are in no folder of a class"
        hints = {missing_reader(Path(path).suffix) for path in ignored}
        say(shown(f"{name}: {what}: {some}{''.join(sorted(hints))}"))
    training = "train" if "train" in files else next(iter(files))
    first = files[training]
    _require_images(root, listed[training], first, ignored)
    _say_masks(name, first)
    names = sorted_names(
        label for classes in files.values() for label, paths in classes.items() if paths
    )
    say_alike(names, name)
    index = {label: i for i, label in enumerate(names)}
    tables = {
        split: [(str(path), index[label]) for label in names for path in classes.get(label, ())]
        for split, classes in files.items()
    }
    if "" in tables:
        rows = tables[""]
        chosen = hold_out([label for _, label in rows], options.split_seed)
        tables = {split: [rows[i] for i in indices] for split, indices in chosen.items()}
    else:
        tables = {
            split: [rows[i] for i in shuffled(len(rows), options.split_seed)]
            for split, rows in tables.items()
        }
    sizes = {split: len(rows) for split, rows in tables.items()}

    def read(split: str) -> Examples:
        ranges = resolve_split(split, sizes)
        rows = [row for part, start, stop in ranges for row in tables[part][start:stop]]
        images = [path for path, _ in rows]
        labels = [label for _, label in rows]
        columns: dict[str, list[Any]] = {"label": labels, "path": images}
        return TableExamples(columns, {"image": images}, options.max_pixels)

    all_images = sorted(Path(path) for rows in tables.values() for path, _ in rows)
    listed_files = FileList.of(
        root, {os.path.relpath(path, root): path for path in all_images}, options.on_bad_image
    )

    def contents() -> dict[str, Any]:
        order = {
            split: order_digest([os.path.relpath(path, root), label] for path, label in rows)
            for split, rows in tables.items()
        }
        return {"order": order, **listed_files.contents()}

    return Source(
        name,
        names,
        sizes,
        read,
        listed_files.origin(options),
        ("image", "label", "path"),
        options.on_bad_image,
        contents=contents,
        present={split: present(label for _, label in rows) for split, rows in tables.items()},
        drawn="" in files,
    )


def _no_folder(path: Path) -> str:
    """What is wrong with a path that is no folder, and what to do: a part of a message."""
    if not path.exists():
        parents = [p for p in path.absolute().parents if p.is_dir()]
        there = sorted(p.name for p in parents[0].iterdir() if p.is_dir())
        wanted = path.absolute().relative_to(parents[0]).parts[0]
        return f"{path} does not exist; {parents[0]} holds no folder {wanted!r}." + (
            nearest(wanted, there)
        )
    if path.suffix.lower() in _ARCHIVES:
        return f"{path} is an archive; unpack it, and give the folder"
    if path.suffix.lower() in (".csv", ".tsv", ".txt"):
        return f"{path} is a file; a table of images is read by csv:{path}"
    return f"{path} is a file; expected a folder of images by class"


def _lying_flat(ignored: Sequence[str], folder: Path) -> str:
    """What a folder holds that has no image in a folder of a class, for a message."""
    images = [p for p in ignored if Path(p).parent == folder and Path(p).suffix.lower() in SUFFIXES]
    archives = [p for p in ignored if Path(p).suffix.lower() in _ARCHIVES]
    if not images and archives:
        first = Path(archives[0]).name
        return f"no images but archives, such as {first}, which are not read: unpack them"
    if not images:
        if any(Path(p).name in _SAVED_TO_DISK for p in ignored):
            return (
                f"a dataset of the library datasets that save_to_disk() wrote, which "
                f"data.source=hf:{folder} reads, and no images"
            )
        kinds = Counter(Path(p).suffix.lower() or "no suffix" for p in ignored)
        shown = ", ".join(f"{count} files of {kind}" for kind, count in kinds.most_common(3))
        texts = kinds.most_common(1)[0][0] in (".txt", ".md", ".html") if kinds else False
        table = (
            " (texts are read from a table with the columns text and label, and split if the "
            "folders are splits: csv:PATH)"
        )
        return f"no images but {shown}{table if texts else ''}" if kinds else "no images"
    return (
        f"{len(images)} images that are in no folder of a class, such as {Path(images[0]).name} "
        f"(a table with a column of paths and a column of labels reads them: csv:PATH)"
    )


def _folders(root: Path) -> list[Path]:
    """The folders in a folder, without hidden folders and folders that systems create."""
    found = (p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(p for p in found if p.name not in _OF_SYSTEMS)


def _by_split(root: Path) -> dict[str, Path]:
    """Folders by split; an empty dict where the folders in `root` are classes."""
    found: dict[str, Path] = {}
    folders = _folders(root)
    splits = [f for f in folders if split_named(f.name)]
    # A class may be called "train"; the folder of a class has no folders in it.
    if not splits or not any(_folders(folder) for folder in splits):
        _require_other_names(root, folders, splits)
        return {}
    others = [f.name for f in folders if f not in splits]
    if others:
        raise UserError(
            f"data.source: {root} holds splits ({', '.join(f.name for f in splits)}) and other "
            f"folders: {', '.join(others)}; expected either classes or splits called "
            f"{', '.join(SPLIT_NAMES)}"
        )
    for folder in splits:
        split = split_named(folder.name) or ""
        if split in found:
            raise UserError(
                f"data.source: {found[split]} and {folder} are both the split {split!r}; rename "
                f"or move one of them"
            )
        found[split] = _unwrapped(folder)
    return found


def _unwrapped(folder: Path) -> Path:
    """The folder, or the folder of the same name that is all it holds, as in some archives."""
    inside = _folders(folder)
    if len(inside) == 1 and split_named(inside[0].name) == split_named(folder.name):
        return inside[0]
    return folder


def _require_other_names(root: Path, folders: Sequence[Path], splits: Sequence[Path]) -> None:
    """Raises UserError for splits without folders of classes, which would be read as classes."""
    if len(folders) < 2 or len(splits) < len(folders):
        return
    tables = [
        f"; {table} may have the labels: csv:train=FILE,test=FILE reads CSV tables with a column "
        f"of paths and a column of labels"
        for folder in splits
        for suffix in ("csv", "tsv", "jsonl", "json", "txt")
        for table in sorted(folder.glob(f"*.{suffix}"))
    ]
    raise UserError(
        f"data.source: {root} holds the splits {', '.join(f.name for f in splits)}, which have no "
        f"folders of classes; expected {splits[0]}/CLASS/IMAGE, also for a task that reads no "
        f"labels (a single folder is one class){tables[0] if tables else ''}"
    )


def _require_classes(listed: Mapping[str, Path]) -> None:
    """Raises UserError for images in one folder and their labels or masks in another."""
    for folder in listed.values():
        names = {f.name.lower(): f.name for f in _folders(folder)}
        images = [names[name] for name in _IMAGES if name in names]
        targets = [names[name] for name in _TARGETS if name in names]
        if images and targets and len(names) <= 3:
            raise UserError(
                f"data.source: {folder} holds {images[0]}/ and {targets[0]}/, which are no classes "
                f"but images and what belongs to them, as for detection or segmentation; "
                f"expected one folder per class. Labels of images are read from a table with a "
                f"column of paths (csv:PATH), and masks from tfds: and hf: (data.mask_column)"
            )


def files_below(folder: Path) -> Iterator[Path]:
    """Files under a folder, also under links to folders; hidden files and folders are left out.

    A link to a folder that holds `folder` is left out, too: it leads to the files of other classes.
    """
    seen: set[str] = set()
    own = os.path.realpath(folder)
    for where, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        above = own != real and own.startswith(os.path.join(real, ""))
        if above or real in seen:  # a second link to one folder
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [n for n in folders if not n.startswith(".") and n not in _OF_SYSTEMS]
        yield from (Path(where, file) for file in files if not file.startswith("."))


def _require_images(
    root: Path, folder: Path, classes: dict[str, list[Path]], ignored: Sequence[str]
) -> None:
    """Raises UserError for a class of the training split without images, or a level too much."""
    empty = sorted(label for label, paths in classes.items() if not paths)
    if empty:
        place = folder / empty[0]
        others = sorted({Path(p).suffix.lower() for p in ignored if Path(p).is_relative_to(place)})
        what = f"files of other kinds ({', '.join(others[:5])})" if others else "no files"
        raise UserError(
            f"data.source: the class folder {place} holds {what}, and no image that can be read "
            f"here ({', '.join(sorted(SUFFIXES))}){''.join(map(missing_reader, others))}; convert "
            f"its files, or remove the folder"
        )
    _compare_levels(root, folder, classes)


def _compare_levels(root: Path, folder: Path, classes: dict[str, list[Path]]) -> None:
    """Says that folders of classes hold folders alone, which may be the classes themselves.

    Raises:
      UserError: they hold splits.
    """
    inner = {
        path: _folders(path) for path in _folders(folder) if classes.get(class_name(path.name))
    }
    nested = [
        path
        for path, below in inner.items()
        if below and not any(image.parent == path for image in classes[class_name(path.name)])
    ]
    if not nested or len(nested) < len(inner):
        return
    some, below = nested[0], inner[nested[0]]
    what = (
        f"a single folder, {some.name!r}, which holds"
        if len(nested) == 1
        else f"{len(nested)} folders, {', '.join(repr(p.name) for p in nested[:8])}, which hold "
        f"folders and no images; {some.name!r} holds the"
    )
    remark = f"data.source: {folder} holds {what} folders: {', '.join(f.name for f in below[:8])}; "
    same = all({f.name for f in inner[p]} == {f.name for f in below} for p in nested)
    if any(split_named(f.name) for f in below):
        found = [f for p in nested for f in inner[p]]
        if len(nested) > 1 and all(split_named(f.name) and not _folders(f) for f in found):
            raise UserError(
                f"{remark}expected a folder of classes in each split: move "
                f"{folder}/CLASS/SPLIT to {folder}/SPLIT/CLASS"
            )
        raise UserError(f"{remark}did you mean folder:{root / some.name}?")
    if same and len(nested) > 1:
        say_once(
            shown(
                f"{remark}so do the others. The classes here are {some.name}, {nested[1].name}, …; "
                f"if they are parts of the data, such as folds, and {below[0].name} is a class, a "
                f"table with the columns image, label and split reads all of them (csv:PATH), and "
                f"folder:{some} reads one"
            )
        )
    else:  # images without classes, for pre-training, may be kept like this
        say_once(shown(f"{remark}did you mean folder:{root / some.name}?"))


def _say_masks(name: str, classes: Mapping[str, Sequence[Path]]) -> None:
    """Says which images are masks of other images by their names: they are read as images."""
    found = []
    for paths in classes.values():
        stems = {path.with_suffix("") for path in paths}
        for path in paths:
            of = _MASK_NAME.fullmatch(path.stem)
            if of and path.with_name(of[1]) in stems:
                found.append(path)
    if found:
        count = sum(map(len, classes.values()))
        say_once(
            shown(
                f"{name}: {len(found)} of {count} images are masks of others by their names, such "
                f"as {found[0].name}, and are read as images of their class; if they are masks, "
                f"move them to a folder that is not read, because they show the class"
            )
        )


def _by_class(folder: Path, ignored: list[str]) -> dict[str, list[Path]]:
    """Sorted image files by class; other files that are not hidden are added to `ignored`."""
    classes: dict[str, list[Path]] = {}
    for label in _folders(folder):
        found = classes.setdefault(class_name(label.name), [])
        for path in files_below(label):
            if path.suffix.lower() in SUFFIXES:
                found.append(path)
            else:
                ignored.append(str(path))
        found.sort()
    stray = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    ignored.extend(map(str, sorted(stray)))
    return classes
