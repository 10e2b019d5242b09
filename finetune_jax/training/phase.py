"""One phase of a setup: its state, placed on the mesh, and its compiled steps."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from finetune_jax import tree
from finetune_jax.data.augment import make_input_pipeline
from finetune_jax.data.preprocess import Preprocess
from finetune_jax.deltas import Adapted
from finetune_jax.evaluation.step import make_eval_step
from finetune_jax.mesh import batch_sharding, state_sharding
from finetune_jax.models import DTYPES, initial_variables
from finetune_jax.schemes import Leaf, Phase, Plan
from finetune_jax.setup import Setup
from finetune_jax.training import state as state_lib
from finetune_jax.training.optimizer import (
    hyper_parameters,
    label,
    make_optimizer,
    make_rates,
    migrate,
)
from finetune_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class PhaseRun:
    """A phase at its place in a run.

    Attributes:
      setup: the whole.
      index: number of the phase.
      start: step of the run at which it starts.
      steps: its length.
    """

    setup: Setup
    index: int = 0
    start: int = 0
    steps: int = 1000

    @property
    def phase(self) -> Phase:
        """The phase."""
        return self.setup.phases[self.index]

    @property
    def plan(self) -> Plan:
        """Its plan."""
        return self.phase.plan

    @property
    def model(self) -> Adapted:
        """The model with the deltas in place."""
        return self.plan.adapt(self.setup.model)

    @functools.cached_property
    def ages(self) -> dict[str, int]:
        """Phase in which each trainable leaf joined and since when it has trained, by path."""
        ages: dict[str, int] = {}
        for number, phase in enumerate(self.setup.phases[: self.index + 1]):
            before = {} if phase.reset or phase.solve else ages
            ages = {path: before.get(path, number) for path in phase.plan.trainable}
            if phase.solve:
                ages = {}
        return ages

    @functools.cached_property
    def settings(self) -> Any:
        """``config.optimizer`` with what the phase says otherwise."""
        settings = copy.deepcopy(self.setup.config.optimizer)
        own = {
            "name": self.phase.optimizer,
            "weight_decay": self.phase.decay,
            "clip_norm": self.phase.clip,
        }
        settings.update({key: value for key, value in own.items() if value is not None})
        return settings

    @functools.cached_property
    def rates(self) -> Any:
        """Learning rates by step and leaf."""
        return make_rates(self.settings, self.phase, self.start, max(self.steps, 1))

    @functools.cached_property
    def optimizer(self) -> Any:
        """The gradient transformation."""
        return make_optimizer(self.settings, self.rates, self.ages)

    @property
    def abstract(self) -> dict[str, Any]:
        """Variables with deltas, as shape structs."""
        leaves = {x.path: jax.ShapeDtypeStruct(x.shape, x.dtype) for x in self.plan.leaves}
        return {
            "params": tree.unflatten(leaves),
            "batch_stats": self.setup.abstract["batch_stats"],
        }

    def hyper(self) -> dict[str, Any]:
        """Start value of `State.hyper`."""
        smoothing = self.setup.config.task.label_smoothing
        return hyper_parameters(self.settings, self.plan, smoothing)

    def _create(self, variables: dict[str, Any], anchor: Any, hyper: Any, seed: Any) -> Any:
        config = self.setup.config
        return state_lib.create(
            variables,
            self.plan,
            self.optimizer,
            hyper,
            seed=seed,
            ema=config.optimizer.ema_decay > 0,
            frozen_dtype=DTYPES[config.model.frozen_dtype],
            # What another phase trains is not rounded before or after it does.
            exact=self.setup.trainable,
            anchor=anchor,
        )

    def anchor(self, pretrained: tree.Tree) -> dict[str, Any]:
        """The pretrained values L2-SP pulls towards; empty when it is off.

        Args:
          pretrained: param pytree of the leaves a weight file gave, without re-initialised ones.
        """
        config = self.setup.config.optimizer
        if not (config.l2_sp or config.l2_sp_head):
            return {}
        flat = tree.flatten(pretrained)
        return tree.unflatten({p: flat[p] for p in self.plan.trainable if p in flat})

    def create_state(
        self,
        variables: dict[str, Any],
        anchor: Any = None,
        once: Callable[[Any, Callable[[], Any]], Any] = lambda key, make: make(),
    ) -> tuple[state_lib.State, state_lib.Frozen]:
        """State and base on the mesh, from concrete variables with the deltas of this phase.

        Args:
          variables: of the model and the deltas.
          anchor: see `anchor`.
          once: keeps the compiled function for the next arm, see `Shared.once`.
        """
        # Split once outside of jit, where tied leaves are still one array.
        self.plan.split(variables["params"])
        values = (variables, anchor or {}, self.hyper(), self.setup.config.seed)

        def compile_create() -> Any:
            shapes = jax.eval_shape(self._create, *values)
            return jax.jit(self._create, out_shardings=state_sharding(self.setup.mesh, shapes))

        state, base = once(("create", self.index), compile_create)(*values)
        teacher = self.setup.teacher
        return state, dataclasses.replace(base, teacher=teacher.variables if teacher else {})

    def abstract_state(self, anchor: Any = None) -> tuple[Any, Any]:
        """State and base as shape structs with shardings."""
        seed = self.setup.config.seed
        state, base = jax.eval_shape(self._create, self.abstract, anchor or {}, self.hyper(), seed)
        if self.setup.teacher:
            answers = jax.eval_shape(lambda v: v, self.setup.teacher.variables)
            base = dataclasses.replace(base, teacher=answers)
        shapes = (state, base)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            state_sharding(self.setup.mesh, shapes),
        )

    def carry(self, before: PhaseRun, old: state_lib.State, new: state_lib.State) -> Any:
        """`new` with what survives from the phase before: step, moments, averages, PRNG key."""
        survivors = [p for p, age in self.ages.items() if age < self.index]
        labels: Mapping[str, str] = {
            leaf.path: label(leaf.group, before.ages[leaf.path])
            for leaf in before.plan.leaves
            if leaf.path in survivors
        }
        ema = new.ema
        if ema:
            known = tree.flatten(old.ema)
            ema = tree.map_with_path(lambda p, x: known.get(p, x), new.ema)
        return dataclasses.replace(
            new,
            step=old.step,
            key=old.key,
            ema=ema,
            opt_state=migrate(old.opt_state, new.opt_state, survivors, labels),
        )

    def train_step(self) -> Any:
        """The step, not yet compiled."""
        setup, config = self.setup, self.setup.config
        return make_train_step(
            self.model,
            setup.task,
            self.plan,
            self.optimizer,
            make_input_pipeline(setup.preprocess, config.data.augment),
            accumulate=config.train.accumulate,
            ema_decay=config.optimizer.ema_decay,
            sam_rho=config.optimizer.sam_rho,
            l2_sp=config.optimizer.l2_sp,
            l2_sp_head=config.optimizer.l2_sp_head,
            teacher=setup.teacher,
        )

    def compile_train_step(self, anchor: Any = None, *, cached: bool = False) -> Any:
        """Compiles the step from shapes alone.

        Args:
          anchor: shapes of the base's anchor.
          cached: the batch holds activations after the plan's prefix instead of inputs.
        """
        state, base = self.abstract_state(anchor)
        mesh, size = self.setup.mesh, self.setup.config.train.batch_size
        return (
            jax.jit(
                self.train_step(),
                in_shardings=(
                    state_sharding(mesh, state),
                    state_sharding(mesh, base),
                    batch_sharding(mesh),
                ),
                out_shardings=(state_sharding(mesh, state), None),
                donate_argnums=0,
            )
            .lower(state, base, self.abstract_batch(size, cached=cached))
            .compile()
        )

    def compile_eval_step(
        self, batch_size: int, variables: Any = None, *, cached: bool = False
    ) -> Any:
        """Compiles (variables, batch) to what the task observes of each example.

        Args:
          batch_size: examples.
          variables: whose shapes and dtypes are meant; `abstract` if None.
          cached: the batch holds activations after the plan's prefix instead of inputs.
        """
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
            self.abstract if variables is None else variables,
        )
        start = self.plan.stages[len(self.plan.prefix)] if cached else None
        task, config = self.setup.task, self.setup.config
        augment = config.data.augment if task.random_inputs else ""
        pipeline = make_input_pipeline(self.setup.preprocess, augment)
        step = make_eval_step(self.model, task, pipeline, start)
        placed = state_sharding(self.setup.mesh, like)
        return (
            jax.jit(step, in_shardings=(placed, batch_sharding(self.setup.mesh)))
            .lower(like, self.abstract_batch(batch_size, cached=cached))
            .compile()
        )

    def abstract_batch(self, batch_size: int, *, cached: bool = False) -> dict[str, Any]:
        """Shapes of a batch on device."""
        targets = self.setup.task.abstract(batch_size)
        if cached:
            whole = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((batch_size * self.inputs, *x.shape), x.dtype),
                self.activation,
            )
            return {"activation": whole, **targets}
        return {**self.setup.preprocess.abstract(batch_size), **targets}

    @property
    def activation(self) -> Any:
        """Shape of one input's activation after the prefix; texts have a tree of several arrays."""
        stop = self.plan.stages[len(self.plan.prefix)]
        return _activation(self.model, self.plan.leaves, self.setup.preprocess, stop)

    @property
    def inputs(self) -> int:
        """Inputs to the model per example."""
        return self.setup.task.views

    @property
    def activation_bytes(self) -> int:
        """Bytes of one example's activations after the prefix."""
        leaves = jax.tree.leaves(self.activation)
        sizes = (math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in leaves)
        return self.inputs * sum(sizes)


@functools.lru_cache(maxsize=64)
def _activation(model: Adapted, leaves: tuple[Leaf, ...], preprocess: Preprocess, stop: str) -> Any:
    """Shapes of one input's activation before a stage; traced once for all arms that ask."""
    variables = {
        "params": tree.unflatten({x.path: jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves}),
        "batch_stats": initial_variables(model.model, preprocess.size, stages=())["batch_stats"],
    }
    out = jax.eval_shape(
        lambda v, batch: model.apply(v, preprocess.device(batch), stop=stop),
        variables,
        preprocess.abstract(1),
    )
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), out)
