"""The inputs of the training loop: states, data on the devices, and compiled steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn_research import ops
from cnn_research.core import run_folder as folders
from cnn_research.core.config import to_dict
from cnn_research.core.distributed import replicated
from cnn_research.core.experiment import registry
from cnn_research.core.files import write_text
from cnn_research.core.memory import LARGE_STEP
from cnn_research.data.batches import class_members
from cnn_research.data.dataset import Split
from cnn_research.data.prepare import shared
from cnn_research.models.pretrained import Loaded, load_pretrained
from cnn_research.train import checkpoint
from cnn_research.train.config import Training
from cnn_research.train.evaluator import Evaluator, scaled
from cnn_research.train.feature_cache import FeatureCache, FromFeatures
from cnn_research.train.plan import Plan
from cnn_research.train.session import HostState, SeedRun, Session
from cnn_research.train.state import (
    StepContext,
    TrainData,
    TrainState,
    initial_state,
    shardings_of,
)
from cnn_research.train.step import make_steps
from cnn_research.train.trained import features_of, weights_to_start_from


@dataclasses.dataclass(eq=False)
class Job:
    """A training that is ready to start or resume.

    With cached features, `model` has only the layers after them, and `splits` has the features, or
    zeros before `compute_features`. `data` is the training split and `seeds` the runs' seeds,
    uint32 `[]` each, on the devices. `features` are the features to compute, if any, and `probe` is
    the experiment that fits the heads to them.
    """

    session: Session
    step: int
    model: nn.Module
    splits: Mapping[str, Split]
    data: TrainData
    seeds: tuple[jax.Array, ...]
    evaluator: Evaluator
    probe: Training | None
    features: FeatureCache | None
    _jitted: dict[float, Any] = dataclasses.field(default_factory=dict)

    @property
    def runs(self) -> Sequence[SeedRun]:
        return self.session.runs

    @property
    def plan(self) -> Plan:
        return self.session.plan

    @property
    def host(self) -> HostState:
        """The host state of all runs: they have the same evaluations, and do not stop early if
        there are several."""
        return self.runs[0].host

    @property
    def states(self) -> tuple[TrainState, ...]:
        return tuple(run.state for run in self.runs)

    @property
    def stopped_early(self) -> str:
        """Reason for early stopping; empty if training should continue."""
        experiment, host = self.session.experiment, self.host
        patience = experiment.selection.patience
        if patience and host.evals_since_best >= patience:
            return f"{host.evals_since_best} evaluations without an improvement"
        return host.stop_reason if experiment.callbacks else ""

    def context(self, phase: float) -> StepContext:
        """Return the constants of train steps in a phase."""
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

    def next_steps(self, due: int) -> tuple[Any, int]:
        """Return the jitted `(states, data, seeds, count) -> (states, metrics)` and the next count.

        The steps end at step `due`, or at the end of the phase, after which the optimizer changes.
        """
        phase, until = self.plan.phase_at(self.step, due)
        if phase not in self._jitted:
            self._jitted[phase] = make_steps(self.context(phase), shardings_of(self.states))
        count = min(ops.current_formulation().steps_per_dispatch, until - self.step)
        return self._jitted[phase], count

    def memory_of_steps(self, due: int) -> Any:
        """Return the compiler's analysis of the next steps' memory, in bytes; None if unavailable.

        JAX caches the compiled steps, which are then run without further compilation.
        """
        steps, count = self.next_steps(due)
        return steps.lower(self.states, self.data, self.seeds, count).compile().memory_analysis()

    def has_large_steps(self, due: int) -> bool:
        """Return whether the next steps are faster if freed memory is kept."""
        memory = self.memory_of_steps(due)
        return memory is not None and memory.temp_size_in_bytes > LARGE_STEP

    def on_every_device(self, tree: Any) -> Any:
        """Replicate arrays on all devices."""
        return jax.device_put(tree, replicated(self.session.mesh))


def prepare(session: Session) -> Job:
    """Restore or initialise the states, describe the runs, and copy the data to the devices.

    Raises `UserError` if a checkpoint or pretrained weights do not fit the model.
    """
    experiment, plan, mesh = session.experiment, session.plan, session.mesh
    loaded = _start(session)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(session.runs[0].state.params))
    if session.writes:
        for run in session.runs:
            _describe(session, run, parameters, loaded)
    say = session.progress.say
    where = str(session.runs[0].workdir / shared.FILE) if session.writes else ""
    for line in shared.lines(session.dataset.provenance, where):
        say(line)
    say(
        f"{parameters:,} parameters, {plan.examples:,} training images, {plan.last_step:,} steps "
        f"on {mesh.size} {jax.default_backend()} device{'s' * (mesh.size > 1)}; "
        f"workdir {session.workdir}"
    )
    if session.restored is not None:
        complete = ", the last one: training is complete" * (session.restored >= plan.last_step)
        say(f"Resuming from the checkpoint of step {session.restored:,}{complete}.")
    if loaded is not None:
        say(f"Pretrained: {loaded}.")
    # Features depend on the parameters.
    with session.interruption.interruptible_setup():
        probe, features = _features(session)
    model, splits = experiment.model, session.dataset.splits
    if experiment.transfer.cache_after:
        assert features is not None
        image_shape = session.dataset.image_shape
        model = FromFeatures(experiment.model, experiment.transfer.cache_after, image_shape)
        splits = features.blank()
    return Job(
        session,
        step=int(session.runs[0].state.step),
        model=model,
        splits=splits,
        data=_on_devices(session, splits["train"]),
        seeds=jax.device_put(
            tuple(jnp.uint32(run.experiment.seed) for run in session.runs), replicated(mesh)
        ),
        evaluator=Evaluator(experiment, model, mesh),
        probe=probe,
        features=features,
    )


def compute_features(job: Job) -> None:
    """Compute a job's features, if it needs any, and fit heads to them if required."""
    session, features = job.session, job.features
    if features is None:
        return
    cached = bool(session.experiment.transfer.cache_after)
    if cached:
        job.data.images.delete()  # zeros
    with session.interruption.interruptible_setup():
        splits = features.read(session.progress.say)
        if job.probe is not None:
            _fit_heads(session, job.probe, splits)
    if cached:
        job.splits, job.data = splits, _on_devices(session, splits["train"])
    job.features = None


def _features(session: Session) -> tuple[Training | None, FeatureCache | None]:
    """Return the experiment that fits the heads and the features, None for what is not needed."""
    experiment, dataset, probe = session.experiment, session.dataset, None
    if session.restored is None and experiment.transfer.fit_after:
        from cnn_research.train.head_fit import probe_of

        probe = probe_of(experiment, dataset.image_shape)
    cached = probe or experiment
    if not cached.transfer.cache_after:
        return None, None
    return probe, features_of(cached, session.runs[0].state, dataset)


def _on_devices(session: Session, train: Split) -> TrainData:
    """Copy the training split to all devices, with the examples by class for balanced sampling."""
    experiment = session.experiment
    balanced = experiment.sampling == "balanced"
    classes = class_members(train.labels[experiment.task.heads[0]]) if balanced else None
    data = TrainData(train.images, dict(train.labels), classes, session.dataset.window)
    return jax.device_put(data, replicated(session.mesh))


def _start(session: Session) -> Loaded | None:
    """Set the state of each run; return the result of loading pretrained weights, if any."""
    loaded = None
    for run in session.runs:
        if session.restored is None:
            loaded = _start_afresh(session, run)
        else:
            run.state, values = checkpoint.restore(
                run.saved, session.restored, session.abstract_state
            )
            run.host = HostState(**values)
    return loaded


def _start_afresh(session: Session, run: SeedRun) -> Loaded | None:
    """Initialise the run's state, from images if the model requires it; then load weights."""
    dataset, loaded = session.dataset, None
    experiment = dataclasses.replace(session.experiment, seed=run.experiment.seed)
    start = folders.located(experiment.pretrained, run.workdir)
    run.state = state = initial_state(experiment, dataset.image_shape, session.mesh)
    count = getattr(experiment.model, "init_images", 0)
    if not (count or start.origin):
        return None
    variables = {"params": state.params, **state.model_state}
    if count:
        train = dataset.splits["train"].images
        # Spread over the split, which may be sorted by class.
        places = np.linspace(0, len(train) - 1, min(count, len(train))).astype(int)
        images = scaled(jnp.asarray(train[places]), experiment)
        variables["params"] = experiment.model.with_images(state.params, images)
    if start.origin:
        weights = weights_to_start_from(start)
        variables, loaded = load_pretrained(experiment.model, variables, start, weights)
    run.state = _with_variables(state, variables)
    return loaded


def _with_variables(state: TrainState, variables: Mapping[str, Any]) -> TrainState:
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    # Copy the averages, as donated buffers must not be shared.
    ema = jax.tree.map(np.array, dict(variables)) if state.ema else {}
    after = dataclasses.replace(state, params=params, model_state=rest, ema=ema)
    return jax.device_put(after, shardings_of(state))


def _fit_heads(session: Session, probe: Training, splits: Mapping[str, Split]) -> None:
    """Replace each run's head by one fitted to the features, and record it."""
    from cnn_research.train.head_fit import fit_head

    for run in session.runs:
        head = fit_head(probe, run.state, session.dataset.image_shape, splits, session.mesh)
        run.state = _with_variables(run.state, head.variables)
        session.progress.say(f"Head fitted: {head}.")
        if session.writes:
            facts = {"penalty": head.penalty, "validation_loss": dict(head.validation_loss)}
            folders.add_facts(run.workdir, fitted_head=facts)


def _describe(session: Session, run: SeedRun, parameters: int, loaded: Loaded | None) -> None:
    """Write the description of a run to its folder."""
    experiment, dataset = session.experiment, session.dataset
    entry = registry().get(experiment.name)
    # Pairs of images are in a separate table.
    provenance = dict(dataset.provenance)
    if pairs := shared.as_csv(provenance):
        write_text(run.workdir / shared.FILE, pairs)
    if alike := provenance.get("near_duplicates"):
        provenance["near_duplicates"] = {k: v for k, v in alike.items() if k != "listed"}
    folders.write_metadata(
        run.experiment,
        run.workdir,
        step=session.restored or 0,
        devices=map(str, session.mesh.devices.flat),
        document=entry.document.citation if entry and entry.document else "",
        document_results=dict(entry.document_results) if entry else {},
        data={"name": dataset.name, **provenance},
        parameters=parameters,
        **({"pretrained": dataclasses.asdict(loaded)} if loaded else {}),
    )
    folders.write_json(
        run.workdir / folders.RESOLVED_CONFIG,
        {
            # Predictions must not need the code of callbacks and loggers.
            "experiment": to_dict(
                dataclasses.replace(experiment, seed=run.experiment.seed, callbacks=(), loggers=())
            ),
            "image_shape": dataset.image_shape,
            "class_names": dataset.class_names,
        },
    )
