"""Everything that the loop works with: states, inputs on the devices, and compiled steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn_research.core import run_folder as folders
from cnn_research.core.config import to_dict
from cnn_research.core.distributed import replicated
from cnn_research.core.experiment import registry
from cnn_research.data.batches import class_members
from cnn_research.data.dataset import Split
from cnn_research.models.pretrained import Loaded
from cnn_research.train import checkpoint
from cnn_research.train.evaluator import Evaluator
from cnn_research.train.initial import first_state, shardings_of
from cnn_research.train.plan import Plan
from cnn_research.train.session import HostState, SeedRun, Session
from cnn_research.train.state import StepContext, TrainData, TrainState
from cnn_research.train.step import make_steps
from cnn_research.train.trained import model_and_splits


@dataclasses.dataclass(eq=False)
class Job:
    """A training that is ready to go on from a step.

    Attributes:
        session: what it was made from.
        step: steps done.
        model: the network that is trained: what comes after cached features, where there are any.
        splits: what it is trained and evaluated on.
        data: the training split, on the devices.
        seeds: of each run, uint32 `[]`, on the devices.
        evaluator: of the model.
    """

    session: Session
    step: int
    model: nn.Module
    splits: Mapping[str, Split]
    data: TrainData
    seeds: tuple[jax.Array, ...]
    evaluator: Evaluator
    _compiled: dict[float, Callable[..., Any]] = dataclasses.field(default_factory=dict)

    @property
    def runs(self) -> Sequence[SeedRun]:
        """What is trained at once."""
        return self.session.runs

    @property
    def plan(self) -> Plan:
        """When what is done."""
        return self.session.plan

    @property
    def host(self) -> HostState:
        """Of all runs: they are evaluated at the same steps, and only one alone stops early."""
        return self.runs[0].host

    @property
    def states(self) -> tuple[TrainState, ...]:
        """The state of each run."""
        return tuple(run.state for run in self.runs)

    @property
    def out_of_patience(self) -> bool:
        """Whether the last evaluations are reason enough to stop."""
        patience = self.session.experiment.selection.patience
        return bool(patience) and self.host.evals_since_best >= patience

    def context(self, phase: float) -> StepContext:
        """What is constant in the steps of a phase."""
        experiment, plan = self.session.experiment, self.plan
        transfer = experiment.transfer
        return StepContext(
            experiment,
            self.model,
            transfer.optimizer(experiment.optimizer, plan.last_step, plan.step_at, phase),
            plan.examples,
            self.session.mesh,
            transfer.frozen(phase),
        )

    def train_steps(self, phase: float) -> Callable[..., tuple[tuple[TrainState, ...], Any]]:
        """The jitted `(states, data, seeds, count) -> (states, metrics)` of a phase."""
        if phase not in self._compiled:
            self._compiled[phase] = make_steps(self.context(phase), shardings_of(self.states))
        return self._compiled[phase]

    def on_every_device(self, tree: Any) -> Any:
        """The same arrays, whole on each device."""
        return jax.device_put(tree, replicated(self.session.mesh))


def prepare(session: Session) -> Job:
    """Restore or draw the states, describe the runs, and bring the data to the devices.

    Raises:
        UserError: a checkpoint or pretrained weights do not fit the model.
        Interrupted: a signal asked the process to stop.
    """
    experiment, plan, mesh = session.experiment, session.plan, session.mesh
    loaded = _start(session)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(session.runs[0].state.params))
    if session.writes:
        for run in session.runs:
            _describe(session, run, parameters, loaded)
    say = session.progress.say
    say(
        f"{parameters:,} parameters, {plan.examples:,} training images, {plan.last_step:,} steps "
        f"on {mesh.size} {jax.default_backend()} device{'s' * (mesh.size > 1)}; "
        f"workdir {session.workdir}"
    )
    if session.restored is not None:
        complete = ", the last: nothing is left to train" * (session.restored >= plan.last_step)
        say(f"Resuming from the checkpoint of step {session.restored:,}{complete}.")
    if loaded is not None:
        say(f"Pretrained: {loaded}.")
    # Cached features depend on the parameters, and so come after them.
    with session.interruption.interruptible_setup():
        model, splits = model_and_splits(experiment, session.runs[0].state, session.dataset, say)
    train = splits["train"]
    balanced = experiment.sampling == "balanced"
    classes = class_members(train.labels[experiment.task.heads[0]]) if balanced else None
    data = TrainData(train.images, dict(train.labels), classes, session.dataset.window)
    return Job(
        session,
        step=int(session.runs[0].state.step),
        model=model,
        splits=splits,
        data=jax.device_put(data, replicated(mesh)),
        seeds=jax.device_put(
            tuple(jnp.uint32(run.experiment.seed) for run in session.runs), replicated(mesh)
        ),
        evaluator=Evaluator(experiment, model, mesh),
    )


def _start(session: Session) -> Loaded | None:
    """Give each run its state; return what became of pretrained weights, if there are any."""
    experiment, plan, loaded = session.experiment, session.plan, None
    if session.restored is not None:
        for run in session.runs:
            run.state, values = checkpoint.restore(
                run.saved, session.restored, session.abstract_state
            )
            run.host = HostState(**values)
        return None
    optimizer = experiment.transfer.optimizer(experiment.optimizer, plan.last_step, plan.step_at)
    for run in session.runs:
        start = folders.located(experiment.pretrained, run.workdir)
        seeded = dataclasses.replace(experiment, seed=run.experiment.seed, pretrained=start)
        run.state, loaded = first_state(seeded, optimizer, session.dataset, session.mesh)
    return loaded


def _describe(session: Session, run: SeedRun, parameters: int, loaded: Loaded | None) -> None:
    """Write down in the run's folder what it is."""
    experiment, dataset = session.experiment, session.dataset
    entry = registry().get(experiment.name)
    folders.write_metadata(
        run.experiment,
        run.workdir,
        step=session.restored or 0,
        devices=map(str, session.mesh.devices.flat),
        document=entry.document if entry else "-",
        document_results=dict(entry.document_results) if entry else {},
        data={"name": dataset.name, **dataset.provenance},
        parameters=parameters,
        **({"pretrained": dataclasses.asdict(loaded)} if loaded else {}),
    )
    folders.write_json(
        run.workdir / folders.RESOLVED_CONFIG,
        {
            "experiment": to_dict(dataclasses.replace(experiment, seed=run.experiment.seed)),
            "image_shape": dataset.image_shape,
            "class_names": dataset.class_names,
        },
    )
