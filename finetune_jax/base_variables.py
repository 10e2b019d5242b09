"""The base: the variables that a run starts from, from a weight file or at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from finetune_jax import tree
from finetune_jax.data.preprocess import Preprocess
from finetune_jax.errors import UserError
from finetune_jax.hosts import primary_first
from finetune_jax.mesh import put_leaf
from finetune_jax.models import entry_of
from finetune_jax.models.registry import IMAGENET_MEAN, IMAGENET_STD
from finetune_jax.pretrained import Manifest, Selection, load
from finetune_jax.pretrained.adapter import Adapter, open_adapter
from finetune_jax.pretrained.class_names import (
    artifact_class_names,
    compare_described,
    described_class_names,
    read_class_names,
    require_same_classes,
    say_by_number,
    shared_rows,
)
from finetune_jax.pretrained.sources import companion_folder, local_file, resolve
from finetune_jax.pretrained.sources.pins import other_than_published
from finetune_jax.progress import say
from finetune_jax.setup import Setup


def load_variables(setup: Setup) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loads the pretrained weights, or draws random weights if ``pretrained.path`` is empty.

    On a mesh of several devices each leaf is put on the mesh as soon as the leaf is read: a large
    leaf is sharded over ``fsdp`` and is never whole on a device.

    Returns:
      (variables, manifest as JSON).

    Raises:
      UserError: the file does not fit the model, or a re-initialised leaf is frozen.
    """
    settings = setup.config.pretrained
    if not settings.path:
        variables = setup.initial_variables()
        own_head = setup.task.start_head(variables["params"]["head"], _head_key(setup))
        if own_head:
            variables["params"]["head"] = own_head
        return variables, {"file": None, "rows": []}
    if jax.process_count() > 1:
        primary_first(lambda: resolve(settings.path))
    init = setup.initial_variables(stages=("head", *setup.model.fresh_stages))
    own_head = setup.task.start_head(init["params"]["head"], _head_key(setup))
    init["params"]["head"] = own_head or _start_head(
        init["params"]["head"], settings.head_init, setup
    )
    adapter = _adapter(setup)
    place = _placer(setup.mesh)
    variables, manifest = _load(setup, init, own_head is not None, place, adapter=adapter)
    if line := other_than_published(manifest.file, manifest.sha256):
        say(line)
    found = manifest.to_json()
    if adapter:
        variables, found["adapter"] = _with_adapter(variables, adapter, place)
    return variables, found


def check_weights(setup: Setup) -> Manifest | None:
    """Compares the weight file with the model by names and shapes alone; no value is read.

    Nothing is computed on devices and nothing is downloaded.

    Returns:
      The manifest that a load would have, without its digest; None if no weight file is named, or
      if its source is an address or a repository whose file was not downloaded yet.

    Raises:
      UserError: as `load_variables`, except for values that are not finite.
    """
    path = setup.config.pretrained.path
    if not path or local_file(path) is None:
        return None
    head = setup.abstract["params"]["head"]
    own_head = jax.eval_shape(lambda h: setup.task.start_head(h, jax.random.key(0)), head)
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), setup.abstract)
    return _load(
        setup, zeros, own_head is not None, lambda leaf, array: None, read_values=False,
        adapter=_adapter(setup),
    )[1]  # fmt: skip


def _adapter(setup: Setup) -> Adapter | None:
    family = entry_of(setup.config.model.name).family
    leaves = tree.flatten(setup.abstract)
    return open_adapter(setup.config.pretrained.adapter, family, leaves, setup.model.sizes)


def _with_adapter(
    variables: dict[str, Any], adapter: Adapter, place: Callable[[str, Any], Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables with the leaves of an adapter, and what the manifest says about it."""
    before = tree.flatten(variables)
    values = adapter.values(before)
    put = place or (lambda leaf, array: array)
    after = tree.unflatten({**before, **{path: put(path, x) for path, x in values.items()}})
    replaced = sorted(path for path in values if path in before)
    say(
        f"{adapter.file}: {len(adapter.deltas)} deltas, and {len(replaced)} leaves in the place of "
        f"those of the weight file"
    )
    return {c: after.get(c, {}) for c in variables}, {
        "file": adapter.file, "sha256": adapter.sha256, "leaves": replaced,
    }  # fmt: skip


def _load(
    setup: Setup,
    init: dict[str, Any],
    own_head: bool,
    place: Callable[[str, Any], Any] | None,
    *,
    read_values: bool = True,
    adapter: Adapter | None = None,
) -> tuple[dict[str, Any], Manifest]:
    """Loads, or without `read_values` only compares, the weight file over initial values.

    Args:
      setup: the setup.
      init: initial values.
      own_head: whether the task sets the head, whatever the file has.
      place: see `pretrained.load`.
      read_values: see `pretrained.load`.
      adapter: adapter whose leaves take the place of those of the file.
    """
    settings = setup.config.pretrained
    rows: dict[int, int] = {}
    if settings.head_init == "copy":
        rows = shared_rows(setup.task.class_names, read_class_names(settings.class_names))
    unnamed = False
    if not (settings.new_head or settings.head_init or own_head):
        unnamed = not _compare_classes(setup)
    variables, manifest = load(
        settings.path,
        entry_of(setup.config.model.name).family,
        init,
        setup.model,
        name_map=settings.name_map,
        reinitialise_head=settings.new_head or own_head,
        resize=settings.resize,
        copy_rows=rows,
        place=place,
        read_values=read_values,
        model_name=setup.config.model.name,
        selection=Selection(settings.weights, settings.prefix, settings.ignore),
    )
    _check_colours(manifest.origin, setup.preprocess)
    fresh = [
        row.leaf.removeprefix("params/")
        for row in manifest.rows
        if row.decision == "reinitialised" and row.leaf and row.leaf.startswith("params/")
    ]
    known = {p.removeprefix("params/") for p in (adapter.leaves if adapter else ())}
    fresh = [path for path in fresh if path not in known]
    if unnamed and not any(path.startswith("head/") for path in [*fresh, *known]):
        say_by_number(settings.path, setup.task.class_names)
    _require_trained(setup, [p for p in fresh if not (own_head and p.startswith("head/"))])
    return variables, manifest


def _compare_classes(setup: Setup) -> bool:
    """Compares the classes of the data with those of the head of the weight file.

    Returns:
      Whether a file names the classes of the head.

    Raises:
      UserError: the head is that of an artifact with other classes, or the file beside the weights
        has the same classes in another order.
    """
    path, ours = setup.config.pretrained.path, setup.task.class_names
    known = artifact_class_names(resolve(path))
    require_same_classes(path, known, ours)
    if known:
        return True
    described = described_class_names(companion_folder(path, ["config.json"], fetch=False))
    compare_described(path, described, ours)
    return bool(described)


def _require_trained(setup: Setup, fresh: Sequence[str]) -> None:
    """Raises UserError if the scheme freezes a leaf that has random values.

    Args:
      setup: the setup.
      fresh: paths of leaves that the weight file does not give.
    """
    stuck = [path for path in fresh if path not in setup.trainable]
    if stuck:
        stages = dict.fromkeys(path.split("/")[0] for path in stuck)
        term = "head" if [*stages] == ["head"] else f"stages({', '.join(map(repr, stages))})"
        raise UserError(
            f"scheme {setup.scheme!r} freezes new leaves, which have random values: "
            f"{', '.join(stuck)}; add ' + {term}' to train these leaves"
        )


def _check_colours(origin: str, preprocess: Preprocess) -> None:
    """Warns if weights of torchvision get images normalised otherwise than in their training."""
    mean = getattr(preprocess, "mean", IMAGENET_MEAN)
    if origin == "torchvision" and any(
        abs(a - b) > 1e-3 for a, b in zip(mean, IMAGENET_MEAN, strict=True)
    ):
        say(
            f"warning: the names of the weights are torchvision's, whose models read images of the "
            f"mean {IMAGENET_MEAN} and the std {IMAGENET_STD}; data.mean is {tuple(mean)}"
        )


def _placer(mesh: Mesh) -> Callable[[str, Any], Any] | None:
    """Returns a function that puts a leaf on the mesh; None for a mesh of one device."""
    if mesh.size == 1:
        return None
    return lambda leaf, array: put_leaf(array, mesh)


def _start_head(head: dict[str, Any], how: str, setup: Setup) -> dict[str, Any]:
    """Returns the start values of the head: of the model's initialiser, zero, or LeCun normal."""
    if how == "zero":
        return jax.tree.map(jnp.zeros_like, head)
    if how == "lecun":
        shape = head["kernel"].shape
        draw = jax.nn.initializers.lecun_normal()(_head_key(setup), shape, jnp.float32)
        return {**jax.tree.map(jnp.zeros_like, head), "kernel": draw}
    return head


def _head_key(setup: Setup) -> jax.Array:
    return jax.random.fold_in(jax.random.key(setup.config.seed), 1)
