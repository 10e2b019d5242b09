"""One phase of a run: its state, placed on the mesh, and its compiled steps."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np

from finetune_jax import tree
from finetune_jax.data.augment import make_input_pipeline
from finetune_jax.data.preprocess import Preprocess
from finetune_jax.deltas import Adapted
from finetune_jax.evaluation.step import make_eval_step, make_forward
from finetune_jax.mesh import batch_sharding, state_sharding
from finetune_jax.models import DTYPES, initial_variables
from finetune_jax.quantization import FORMATS
from finetune_jax.schemes import Leaf, Phase, Plan
from finetune_jax.setup import Setup
from finetune_jax.training import state as state_lib
from finetune_jax.training.phase_optimizer import PhaseOptimizer, make_phase_optimizer
from finetune_jax.training.state import CreateState, Frozen, State
from finetune_jax.training.step import Batch, FeatureStep, TrainStep, make_train_step


@dataclasses.dataclass(frozen=True)
class PhaseRun:
    """A phase at its place in a run.

    Attributes:
      setup: setup of the run.
      index: number of the phase, from 0.
      start: step of the run at which the phase starts.
      steps: number of steps of the phase.
    """

    setup: Setup
    index: int = 0
    start: int = 0
    steps: int = 1000

    @property
    def definition(self) -> Phase:
        """The phase as the scheme defines it."""
        return self.setup.phases[self.index]

    @property
    def plan(self) -> Plan:
        """The plan of the phase."""
        return self.definition.plan

    @property
    def model(self) -> Adapted:
        """The model with the deltas of the plan in place, and the rounding of the phase."""
        return dataclasses.replace(
            self.plan.adapt(self.setup.model), formats=self.definition.formats
        )

    @property
    def after_prefix(self) -> str:
        """The first stage after the frozen prefix."""
        return self.plan.stages[len(self.plan.prefix)]

    @functools.cached_property
    def optimizer(self) -> PhaseOptimizer:
        """The optimizer of the phase."""
        setup = self.setup
        return make_phase_optimizer(setup.config, setup.phases, self.index, self.start, self.steps)

    # State.

    @property
    def abstract(self) -> dict[str, Any]:
        """Variables with deltas, as shape structs."""
        leaves = {x.path: jax.ShapeDtypeStruct(x.shape, x.dtype) for x in self.plan.leaves}
        return {
            "params": tree.unflatten(leaves),
            "batch_stats": self.setup.abstract["batch_stats"],
        }

    def anchor(self, pretrained: tree.Tree) -> dict[str, Any]:
        """Returns the pretrained values that L2-SP pulls towards; empty when L2-SP is off.

        Args:
          pretrained: param pytree of the leaves that came from a weight file.
        """
        config = self.setup.config.optimizer
        if not (config.l2_sp or config.l2_sp_head):
            return {}
        flat = tree.flatten(pretrained)
        return tree.unflatten({p: flat[p] for p in self.plan.trainable if p in flat})

    def create_state(
        self,
        variables: dict[str, Any],
        anchor: tree.Tree | None = None,
        create: CreateState | None = None,
    ) -> tuple[State, Frozen]:
        """Returns state and frozen half on the mesh.

        Args:
          variables: concrete variables of the model and of the deltas of this phase.
          anchor: see `anchor`.
          create: result of `compile_create` for equal shapes, where a cache holds the function.
        """
        # Split once outside of jit, where tied leaves are still one array.
        self.plan.split(variables["params"])
        create = create or self.compile_create(variables, anchor)
        seed = self.setup.config.seed
        state, frozen = create(variables, anchor or {}, self.optimizer.hyper(), seed)
        teacher = self.setup.teacher
        return state, dataclasses.replace(frozen, teacher=teacher.variables if teacher else {})

    def compile_create(
        self, variables: dict[str, Any], anchor: tree.Tree | None = None
    ) -> CreateState:
        """Returns `state.create` for this phase, jitted, with outputs placed on the mesh.

        Args:
          variables: variables whose shapes and dtypes the function is for.
          anchor: anchor whose shapes and dtypes the function is for.
        """
        hyper, seed = self.optimizer.hyper(), self.setup.config.seed
        shapes = jax.eval_shape(self._create, variables, anchor or {}, hyper, seed)
        return jax.jit(self._create, out_shardings=state_sharding(self.setup.mesh, shapes))

    def _create(
        self, variables: dict[str, Any], anchor: tree.Tree, hyper: dict[str, Any], seed: Any
    ) -> tuple[State, Frozen]:
        config = self.setup.config
        return state_lib.create(
            variables,
            self.plan,
            self.optimizer.transformation,
            hyper,
            seed=seed,
            ema=config.optimizer.ema_decay > 0,
            frozen_dtype={**DTYPES, **FORMATS}[config.model.frozen_dtype],
            # Leaves that another phase trains keep their dtype, so that no phase rounds them.
            exact=self.setup.trainable,
            anchor=anchor,
        )

    def abstract_state(self, anchor: tree.Tree | None = None) -> tuple[State, Frozen]:
        """Returns state and frozen half as shape structs with shardings.

        Args:
          anchor: see `anchor`.
        """
        hyper, seed = self.optimizer.hyper(), self.setup.config.seed
        state, frozen = jax.eval_shape(self._create, self.abstract, anchor or {}, hyper, seed)
        if self.setup.teacher:
            teacher = jax.eval_shape(lambda v: v, self.setup.teacher.variables)
            frozen = dataclasses.replace(frozen, teacher=teacher)
        shapes = (state, frozen)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            state_sharding(self.setup.mesh, shapes),
        )

    def carry(self, before: PhaseRun, old: State, new: State) -> State:
        """Returns `new` with the values that survive from the phase before.

        These are the step, the moments and averages of leaves that train on, and the PRNG key.

        Args:
          before: the phase before.
          old: state at the end of the phase before.
          new: fresh state of this phase.
        """
        ema = new.ema
        if ema:
            known = tree.flatten(old.ema)
            ema = tree.map_with_path(lambda p, x: known.get(p, x), new.ema)
        return dataclasses.replace(
            new,
            step=old.step,
            key=old.key,
            ema=ema,
            opt_state=self.optimizer.carry(before.optimizer, old.opt_state, new.opt_state),
        )

    # Steps.

    def train_step(self) -> TrainStep:
        """Returns the train step, not yet compiled."""
        setup, config = self.setup, self.setup.config
        return make_train_step(
            self.model,
            setup.task,
            self.plan,
            self.optimizer.transformation,
            make_input_pipeline(setup.preprocess, config.data.augment),
            accumulate=config.train.accumulate,
            ema_decay=config.optimizer.ema_decay,
            sam_rho=config.optimizer.sam_rho,
            l2_sp=config.optimizer.l2_sp,
            l2_sp_head=config.optimizer.l2_sp_head,
            skip_nonfinite=config.train.on_nan == "skip",
            teacher=setup.teacher,
        )

    def compile_train_step(
        self, anchor: tree.Tree | None = None, *, cached: bool = False
    ) -> jax.stages.Compiled:
        """Compiles the train step from shapes alone.

        Args:
          anchor: anchor whose shapes the step is for.
          cached: whether the batch holds activations after the frozen prefix instead of inputs.
        """
        state, frozen = self.abstract_state(anchor)
        mesh, size = self.setup.mesh, self.setup.config.train.batch_size
        return (
            jax.jit(
                self.train_step(),
                in_shardings=(
                    state_sharding(mesh, state),
                    state_sharding(mesh, frozen),
                    batch_sharding(mesh),
                ),
                out_shardings=(state_sharding(mesh, state), None),
                donate_argnums=0,
            )
            .lower(state, frozen, self.abstract_batch(size, cached=cached))
            .compile()
        )

    def compile_eval_step(
        self, batch_size: int, variables: dict[str, Any] | None = None, *, cached: bool = False
    ) -> jax.stages.Compiled:
        """Compiles the evaluation step: (variables, batch) to what the task observes.

        Args:
          batch_size: number of examples of a batch.
          variables: variables whose shapes and dtypes the step is for; None takes `abstract`.
          cached: whether the batch holds activations after the frozen prefix instead of inputs.
        """
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
            self.abstract if variables is None else variables,
        )
        task, config = self.setup.task, self.setup.config
        augment = config.data.augment if task.random_inputs else ""
        pipeline = make_input_pipeline(self.setup.preprocess, augment)
        start = self.after_prefix if cached else None
        step = make_eval_step(self.model, task, pipeline, start)
        placed = state_sharding(self.setup.mesh, like)
        return (
            jax.jit(step, in_shardings=(placed, batch_sharding(self.setup.mesh)))
            .lower(like, self.abstract_batch(batch_size, cached=cached))
            .compile()
        )

    def compile_features(self) -> FeatureStep:
        """Returns the jitted function from (variables, batch) to (features, labels).

        The batch may hold activations after the frozen prefix instead of inputs.
        """
        prepare = self.setup.preprocess.device
        from_inputs = make_forward(self.model, prepare, stop="head")
        from_activations = make_forward(self.model, prepare, self.after_prefix, "head")

        def features(variables: dict[str, Any], batch: Batch) -> tuple[jax.Array, jax.Array]:
            forward = from_activations if "activation" in batch else from_inputs
            return forward(variables, batch), batch["label"]

        return jax.jit(features)

    # Batches.

    def abstract_batch(self, batch_size: int, *, cached: bool = False) -> dict[str, Any]:
        """Returns a batch on devices as shape structs.

        Args:
          batch_size: number of examples.
          cached: whether the batch holds activations after the frozen prefix instead of inputs.
        """
        targets = self.setup.task.abstract(batch_size)
        if cached:
            count = batch_size * self.inputs
            activation = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), self.activation
            )
            return {"activation": activation, **targets}
        return {**self.setup.preprocess.abstract(batch_size), **targets}

    @property
    def activation(self) -> Any:
        """Shape structs of one input's activation after the prefix: an array, or a tree of arrays.

        A model of texts has a tree.
        """
        return _activation(self.model, self.plan.leaves, self.setup.preprocess, self.after_prefix)

    @property
    def inputs(self) -> int:
        """Number of inputs to the model per example."""
        return self.setup.task.views

    @property
    def activation_bytes(self) -> int:
        """Bytes of one example's activations after the prefix."""
        leaves = jax.tree.leaves(self.activation)
        sizes = (math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in leaves)
        return self.inputs * sum(sizes)


# Cached, because tracing takes long and all arms of an ablation ask for the same shapes.
@functools.lru_cache(maxsize=64)
def _activation(model: Adapted, leaves: tuple[Leaf, ...], preprocess: Preprocess, stop: str) -> Any:
    """Shape structs of one input's activation before the stage `stop`."""
    variables = {
        "params": tree.unflatten({x.path: jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves}),
        "batch_stats": initial_variables(model.model, preprocess.size, stages=())["batch_stats"],
    }
    forward = make_forward(model, preprocess.device, stop=stop)
    out = jax.eval_shape(forward, variables, preprocess.abstract(1))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), out)
