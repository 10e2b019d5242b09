"""Parity with a reference implementation, which draws and writes the weights that we load.

A `Case` says how to build the reference with random weights, how it is saved in its native format,
which of its modules end our stages, and which module of ours it should equal. `check` compares
every stage's output, the logits and, where asked, gradients and training mode.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune_jax import tree
from finetune_jax.models import (
    EVAL,
    MODELS,
    Mode,
    StagedModel,
    build,
    initial_variables,
    initialise,
)
from finetune_jax.pretrained import load, save_as
from finetune_jax.pretrained.maps import closest_map, maps_of

ABSOLUTE, RELATIVE = 1e-4, 1e-5


@dataclasses.dataclass(frozen=True)
class Case:
    """One family × origin × format.

    Attributes:
      name: such as ``vit/timm/token``.
      family, origin: family and origin of the name map.
      build: makes the reference, a torch module with random weights, in eval mode.
      model: our model.
      stages: by our stage, the name of the reference's module with the same output; stages without
        a counterpart are left out.
      logits: computes the reference's final output from its input; by default, calls the reference
      and takes ``.logits``.
        save: writes the reference's weights into a folder and returns the file; by default, writes
      the state dict as safetensors.
      turn: converts the output of a stage of the reference to our layout; by default, 4 axes from
      NCHW to NHWC.
      inputs: makes the inputs of our model, f32[b, h, w, 3], from a seed.
      feed: converts our input to the reference's input; by default to NCHW.
      gradients: whether the gradients of a loss with respect to every leaf are compared.
      training: whether outputs and statistics in training mode (BatchNorm) are compared.
      export: whether our variables are written under the origin's names; the reference must load
      the file strictly, bit for bit.
      restore: loads an exported file into the reference, strictly; by default `load_state_dict`.
      headless: whether the reference has no head; its `logits` are then the features that our head
      reads.
    """

    name: str
    family: str
    origin: str
    build: Callable[[], Any]
    model: Callable[[], StagedModel]
    stages: Mapping[str, str] = dataclasses.field(default_factory=dict)
    logits: Callable[[Any, Any], Any] | None = None
    save: Callable[[Any, Path], Path] | None = None
    turn: Callable[[str, np.ndarray], np.ndarray] | None = None
    inputs: Callable[[], Any] | None = None
    feed: Callable[[Any], Any] | None = None
    image_size: int = 32
    gradients: bool = False
    training: bool = False
    export: bool = True
    restore: Callable[[Any, Path], None] | None = None
    headless: bool = False

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Delta:
    """The largest difference of one comparison.

    Attributes:
      what: compared value, such as ``logits``, ``block_0``, ``gradient of block_0/mlp_in/kernel``.
      absolute: max |ours - theirs|.
      scale: max |theirs|.
    """

    what: str
    absolute: float
    scale: float

    @property
    def relative(self) -> float:
        return self.absolute / max(self.scale, 1e-30)


def delta(what: str, ours: Any, theirs: Any) -> Delta:
    """Compares two arrays of one shape."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"{what}: ours {ours.shape}, theirs {theirs.shape}"
    return Delta(what, float(np.abs(ours - theirs).max()), float(np.abs(theirs).max()))


def randomise(module: Any, seed: int = 0) -> Any:
    """Gives a torch module weights without zeros or ones that would hide a wrong leaf."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                inputs = max(parameter[0].numel(), 1)
                parameter.copy_(noise * inputs**-0.5)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(1 + 0.1 * noise)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return module.eval()


def state_arrays(module: Any) -> dict[str, np.ndarray]:
    """A torch state dict as NumPy arrays."""
    return {n: t.detach().numpy().copy() for n, t in module.state_dict().items()}


def save_safetensors(module: Any, folder: Path) -> Path:
    """Writes a torch state dict to a safetensors file, as timm and transformers do."""
    from safetensors.torch import save_file

    path = folder / "model.safetensors"
    save_file({n: t.contiguous().clone() for n, t in module.state_dict().items()}, path)
    return path


def save_torch(module: Any, folder: Path) -> Path:
    """Writes a torch state dict with ``torch.save``."""
    import torch

    path = folder / "model.pth"
    torch.save(module.state_dict(), path)
    return path


def images(case: Case, batch: int = 2) -> np.ndarray:
    """Random normalised images f32[batch, side, side, 3]."""
    shape = (batch, case.image_size, case.image_size, 3)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _feed(x: Any) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def _turn(stage: str, array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def _logits(module: Any, fed: Any) -> Any:
    out = module(**fed) if isinstance(fed, dict) else module(fed)
    return getattr(out, "logits", out)


def reference_outputs(case: Case, module: Any, x: Any) -> dict[str, np.ndarray]:
    """``{stage or 'logits': array in our layout}`` of the reference."""
    import torch

    found: dict[str, np.ndarray] = {}
    turn = case.turn or _turn

    def keep(stage: str, _: Any, __: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        output = getattr(output, "last_hidden_state", output)
        found[stage] = turn(stage, output.detach().numpy())

    handles = [
        module.get_submodule(name).register_forward_hook(functools.partial(keep, stage))
        for stage, name in case.stages.items()
    ]
    with torch.no_grad():
        logits = (case.logits or _logits)(module, (case.feed or _feed)(x))
    for handle in handles:
        handle.remove()
    return {**found, "logits": logits.detach().numpy()}


def our_outputs(
    model: StagedModel,
    variables: Any,
    x: Any,
    stages: Any,
    mode: Mode = EVAL,
    headless: bool = False,
) -> tuple[dict[str, np.ndarray], Any]:
    """The same arrays of our model, run stage by stage, and the updated statistics."""
    found, stats = {}, dict(variables["batch_stats"])
    steps = list(zip(model.stages, [*model.stages[1:], None], strict=True))
    for name, following in steps[:-1] if headless else steps:
        x, changed = model.apply(
            {**variables, "batch_stats": stats},
            x, mode, start=name, stop=following, mutable=["batch_stats"],
        )  # fmt: skip
        stats |= changed.get("batch_stats", {})
        # The comparison is with the stage's output, before the model pools it.
        if name in stages and following != "head":
            found[name] = np.asarray(_first(x))
    return {**found, "logits": np.asarray(x)}, stats


def _first(x: Any) -> Any:
    """The tokens in the output of a text stage, which is the pair (tokens, mask)."""
    return x[0] if isinstance(x, tuple) else x


def load_case(case: Case, module: Any, path: Path) -> tuple[StagedModel, Any, Any]:
    """(our model, the variables loaded from the file, the manifest)."""
    model = case.model()
    x = case.inputs() if case.inputs else images(case)
    init = jax.eval_shape(lambda key: _initialise(model, x), jax.random.key(0))
    if case.headless:
        head = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), init["params"]["head"])
        init = {**init, "params": {**init["params"], "head": head}}
    variables, manifest = load(path, case.family, init, model, reinitialise_head=case.headless)
    assert manifest.origin == case.origin, manifest.origin
    return model, variables, manifest


def _initialise(model: StagedModel, x: Any) -> Any:
    if isinstance(x, np.ndarray) and x.ndim == 4:
        return initialise(model, x.shape[1], jax.random.key(0))
    variables = model.init(jax.random.key(0), jax.tree.map(jnp.asarray, x))
    return {c: dict(variables.get(c, {})) for c in ("params", "batch_stats")}


def check(case: Case, formats: list[str] | None = None) -> list[Delta]:
    """All comparisons of a case; the suffix of the reference's file is added to `formats`."""
    module = case.build()
    x = case.inputs() if case.inputs else images(case)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = (case.save or save_safetensors)(module, folder)
        if formats is not None:
            formats.append("".join(path.suffixes) or "folder")
        model, variables, manifest = load_case(case, module, path)
        fresh = {row.leaf for row in manifest.rows if row.decision == "reinitialised"}
        assert fresh == ({"params/head/kernel", "params/head/bias"} if case.headless else set())
        theirs = reference_outputs(case, module, x)
        ours, _ = our_outputs(model, variables, x, case.stages, headless=case.headless)
        deltas = [delta(what, ours[what], theirs[what]) for what in theirs if what in ours]
        # This comes before training mode, which changes the reference's statistics.
        if case.export:
            _export(case, module, model, variables, folder)
        if case.gradients:
            deltas += _gradients(case, module, model, variables, x, folder)
        if case.training:
            deltas += _training(case, module, model, variables, x, folder)
    return deltas


def _loaded(
    case: Case, model: StagedModel, arrays: Mapping[str, np.ndarray], like: Any, folder: Path
) -> Any:
    """Arrays by the reference's names, as our tree."""
    from safetensors.numpy import save_file

    path = folder / "other.safetensors"
    save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, path)
    return load(path, case.family, like, model)[0]


def _gradients(
    case: Case, module: Any, model: StagedModel, variables: Any, x: Any, folder: Path
) -> list[Delta]:
    """Gradients of sum(logits²) / 2, whose gradient with respect to the logits is the logits."""
    module.zero_grad()
    logits = (case.logits or _logits)(module, (case.feed or _feed)(x))
    (logits**2).sum().div(2).backward()
    arrays = state_arrays(module)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        arrays[name] = parameter.grad.numpy()
    theirs = tree.flatten(_loaded(case, model, arrays, variables, folder)["params"])

    def loss(params: Any) -> Any:
        return jnp.sum(model.apply({**variables, "params": params}, x) ** 2) / 2

    ours = tree.flatten(jax.grad(loss)(variables["params"]))
    found = {leaf: delta(f"gradient of {leaf}", ours[leaf], theirs[leaf]) for leaf in theirs}
    # The scale is that of a stage, because some gradients (of a key's bias) are only rounding.
    scales: dict[str, float] = {}
    for leaf, item in found.items():
        stage = leaf.split("/")[0]
        scales[stage] = max(scales.get(stage, 0), item.scale)
    return [
        dataclasses.replace(item, scale=scales[leaf.split("/")[0]]) for leaf, item in found.items()
    ]


def _training(
    case: Case, module: Any, model: StagedModel, variables: Any, x: Any, folder: Path
) -> list[Delta]:
    """Outputs under batch statistics, and the running statistics afterwards.

    torch keeps the unbiased variance, and flax the biased variance, which is smaller by the factor
    (n - 1) / n. The comparison takes this factor into account.
    """
    module.train()
    theirs = reference_outputs(case, module, x)
    after = _loaded(case, model, state_arrays(module), variables, folder)["batch_stats"]
    module.eval()
    mode = Mode(batch_statistics=frozenset(model.stages))
    ours, stats = our_outputs(model, variables, x, case.stages, mode)
    deltas = [delta(f"training: {what}", ours[what], theirs[what]) for what in ours]
    flat = tree.flatten(stats)
    for leaf, value in tree.flatten(after).items():
        if leaf.endswith("mean"):
            deltas.append(delta(f"training: {leaf}", flat[leaf], value))
    return deltas


def _export(case: Case, module: Any, model: StagedModel, variables: Any, folder: Path) -> None:
    """Our export equals the reference's tensors, and the reference loads it strictly."""
    import torch

    path = folder / "exported.safetensors"
    if case.headless:
        kept = {stage: v for stage, v in variables["params"].items() if stage != "head"}
        variables = {**variables, "params": kept}
    save_as(path, variables, case.family, case.origin, model.sizes)
    before = {n: t.clone() for n, t in module.state_dict().items()}
    (case.restore or _restore)(module, path)
    after = module.state_dict()
    assert after.keys() == before.keys()
    for name in after:
        assert torch.equal(before[name], after[name]), name


def _restore(module: Any, path: Path) -> None:
    from safetensors.torch import load_file

    # Buffers that are no weights: torch counts batches, transformers numbers positions.
    counters = ("num_batches_tracked", "position_ids")
    kept = {n: t for n, t in module.state_dict().items() if n.endswith(counters)}
    module.load_state_dict({**kept, **load_file(path)}, strict=True)


def worst(deltas: list[Delta]) -> Delta:
    """The comparison that is closest to its bound."""
    return max(deltas, key=lambda d: max(d.absolute / ABSOLUTE, d.relative / RELATIVE))


def assert_within(deltas: list[Delta]) -> None:
    """Every comparison is within both bounds."""
    beyond = [d for d in deltas if d.absolute > ABSOLUTE or d.relative > RELATIVE]
    assert not beyond, "\n".join(
        f"{d.what}: |Δ| {d.absolute:.2e}, {d.relative:.2e} of the scale {d.scale:.3g}"
        for d in beyond
    )


def assert_shapes(
    name: str, origin: str, state: Mapping[str, tuple[int, ...]], *, headed: bool = True
) -> None:
    """A reference's names and shapes fill every leaf of a registered model exactly once.

    Args:
      name: name of the registered model, at its published size.
      origin: origin of the names in `state`.
      state: shapes by name, such as those of a torch module on the meta device.
      headed: whether `state` includes our head.
    """
    entry = MODELS[name]
    model = build(name, entry.classes or 1000)
    ours = initial_variables(model, 8 if entry.tokens else entry.image_size, stages=())
    expected = {leaf: tuple(x.shape) for leaf, x in tree.flatten(ours).items()}
    names, unknown = closest_map(maps_of(entry.family), state, expected)
    assert names.origin == origin
    assert not unknown
    found: dict[str, tuple[int, ...]] = {}
    for source, shape in state.items():
        if names.ignored(source) is None:
            for target in names.targets(source):
                assert target.leaf not in found, source
                found[target.leaf] = target.shape(shape, model.sizes)
    if not headed:
        assert not any(leaf.startswith("params/head/") for leaf in found)
        expected = {leaf: s for leaf, s in expected.items() if not leaf.startswith("params/head/")}
    lacking = {leaf: s for leaf, s in expected.items() if leaf not in found}
    found |= {leaf: s for leaf, s in lacking.items() if names.constant(leaf) is not None}
    assert found == expected
