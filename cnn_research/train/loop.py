"""The runner of every trained experiment: init or restore -> loop -> evaluate -> save -> report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cnn_research import ops
from cnn_research.core import run_folder as folders
from cnn_research.core.config import to_dict
from cnn_research.core.distributed import (
    agreed,
    batch_sharded,
    check_divides,
    data_mesh,
    largest,
    replicated,
    state_shardings,
)
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import Result, registry
from cnn_research.core.metrics import is_better
from cnn_research.core.preemption import Interruption
from cnn_research.core.progress import Progress
from cnn_research.core.random import example_keys, fold_name, stream_key
from cnn_research.data.augmentation import stages
from cnn_research.data.batches import (
    balanced_indices,
    batch_indices,
    class_members,
    random_corners,
    steps_at,
    windows_of,
)
from cnn_research.data.dataset import Dataset
from cnn_research.models.pretrained import Loaded, load_pretrained
from cnn_research.report.tensorboard import Histograms, show_training_images
from cnn_research.report.writers import MetricsWriter
from cnn_research.tasks.task import PIXELS
from cnn_research.train import checkpoint
from cnn_research.train.config import Training
from cnn_research.train.estimate import estimate
from cnn_research.train.evaluator import Evaluator, scaled
from cnn_research.train.feature_cache import one_view
from cnn_research.train.finish import report
from cnn_research.train.profiling import Trace
from cnn_research.train.state import TrainState, init_state
from cnn_research.train.trained import (
    abstract_state,
    bound,
    check_same_data,
    inputs,
    reported_step,
    weights_of_run,
)
from cnn_research.train.transfer import frozen_statistics, stopped, with_frozen


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("images", "labels", "classes"),
    meta_fields=("window",),
)
@dataclasses.dataclass(frozen=True)
class Arrays:
    """The training split on the device.

    Attributes:
        images: uint8 `[examples, height, width, channels]`; or cached features, float32
            `[examples, views, *output]`.
        labels: per head, int32 or float32 `[examples]`; or of each pixel, integers
            `[examples, height, width]`.
        classes: which examples each class has, where classes are drawn equally often.
        window: height and width of what is cut from an image, and from its labels per pixel, each
            time it is drawn; None takes it whole.
    """

    images: Any
    labels: Mapping[str, Any]
    classes: Mapping[str, Any] | None = None
    window: tuple[int, int] | None = None


@dataclasses.dataclass
class Decisions:
    """What the run has decided so far; in every checkpoint, beside the state."""

    best: float | None = None
    """The best validation value of the selection metric."""
    stale: int = 0
    """Evaluations since then."""
    evaluated: int = 0
    """The last step that was evaluated."""
    seconds: float = 0.0
    """That the run has taken, over all its continuations."""


@dataclasses.dataclass
class Run:
    """What is trained in one folder.

    Attributes:
        experiment: as it was asked for.
        workdir: its folder.
        decisions: made so far.
    """

    experiment: Training
    workdir: Path
    decisions: Decisions = dataclasses.field(default_factory=Decisions)

    @property
    def saved(self) -> Path:
        """The folder of its checkpoints."""
        return self.workdir / folders.CHECKPOINTS


def dry_run(experiment: Training, workdir: Path) -> Result:
    """Says what a training will take, and stops before its first step; writes nothing.

    Raises:
        UsageError, UserError: those of `train` before its first step.
    """
    return train(experiment, workdir, dry=True)


def train(
    experiment: Training, workdir: Path, *, dry: bool = False, profile: bool = False
) -> Result:
    """Trains in a folder, going on from its newest good checkpoint if it has one.

    Args:
        experiment: what is trained.
        workdir: where.
        dry: stop before the first step, and write nothing.
        profile: trace a few steps into `profile/`.

    Raises:
        UsageError: the folder holds another experiment, or the config does not fit the data.
        UserError: the run failed: data not prepared, a loss that is not finite, a full disk.
        Interrupted: a signal asked the run to stop; it was saved.
    """
    (result,) = train_together([Run(experiment, workdir)], workdir, dry=dry, profile=profile)
    return result


def train_together(
    runs: Sequence[Run], workdir: Path, *, dry: bool = False, profile: bool = False
) -> list[Result]:
    """Trains in several folders at once, in one program; the arguments are those of `train`.

    Args:
        runs: what is trained; they differ in seed and folder.
        workdir: of all of them together.
        dry: see there.
        profile: see there.
    """
    experiment = runs[0].experiment
    if experiment.keep_memory:
        ops.keep_freed_memory()  # before the next line starts JAX's threads
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        for run in runs:
            stack.enter_context(folders.claimed(run.workdir, enabled=first and not dry))
        several = jax.process_count() > 1
        interruption = stack.enter_context(Interruption(largest if several else None))
        for run in runs:
            folders.check_same(run.experiment, run.workdir, experiment.resumable_fields)
        with interruption.preparation():
            dataset = folders.located(experiment.data, runs[0].workdir).load()
        check_data(experiment, dataset)
        mesh = data_mesh()
        check_divides(mesh, experiment.batch_size, experiment.accumulate)
        with jax.set_mesh(mesh):
            return _train(runs, workdir, dataset, mesh, interruption, dry, profile)


def _train(
    runs: Sequence[Run],
    workdir: Path,
    dataset: Dataset,
    mesh: Mesh,
    interruption: Interruption,
    dry: bool,
    profile: bool,
) -> list[Result]:
    started = time.monotonic()
    first = jax.process_index() == 0
    # They differ in their seeds alone, of which nothing before the train step knows.
    experiment = bound(runs[0].experiment, dataset)
    # As many as an epoch sees: with copies, or windows cut from it, each image several times.
    per_image = experiment.augmentation.copies * dataset.windows
    examples = len(dataset.splits["train"]) * per_image
    last_step = steps_at(experiment.epochs, experiment.batch_size, examples)

    # Init or restore.
    transfer = experiment.transfer
    step_of = functools.partial(steps_at, batch_size=experiment.batch_size, examples=examples)
    saved = [run.saved for run in runs]
    restored = agreed(checkpoint.newest_of_all(saved, repair=not dry) if first else None)
    weights: Loaded | None = None
    states: tuple[TrainState, ...] = ()
    if restored is None:
        optimizer = transfer.optimizer(experiment.optimizer, last_step, step_of)
        for run in runs:
            start = folders.located(experiment.pretrained, run.workdir)
            seeded = dataclasses.replace(experiment, seed=run.experiment.seed, pretrained=start)
            state, weights = first_state(seeded, optimizer, dataset, mesh)
            states += (state,)
        runs[0].experiment.transfer.check_layers(states[0].params)
        transfer.check_learns(states[0].params)
    else:
        like = abstract_state(experiment, dataset.image_shape, mesh)
        for run in runs:
            check_same_data(run.workdir, dataset)
            state, values = checkpoint.restore(run.saved, restored, like)
            run.decisions = Decisions(**values)
            states += (state,)
    before = runs[0].decisions.seconds
    parameters = sum(leaf.size for leaf in jax.tree.leaves(states[0].params))
    if first and not dry:
        for run in runs:
            describe(run, experiment, dataset, mesh, parameters, weights, restored or 0)
    progress = Progress(
        last_step, experiment.batch_size * len(runs), experiment.epochs, enabled=first
    )
    progress.say(
        f"{parameters:,} parameters, {examples:,} training images, {last_step:,} steps on "
        f"{mesh.size} {jax.default_backend()} device{'s' * (mesh.size > 1)}; workdir {workdir}"
    )
    if restored is not None:
        complete = ", the last: nothing is left to train" if restored >= last_step else ""
        progress.say(f"Going on from the checkpoint of step {restored:,}{complete}.")
    if weights is not None:
        progress.say(f"Pretrained: {weights}.")
    with interruption.preparation():
        model, splits = inputs(experiment, states[0], dataset, progress.say)
    evaluator = Evaluator(experiment, model, mesh)
    train, validation = splits["train"], splits.get("validation")
    balanced = experiment.sampling == "balanced"
    classes = class_members(train.labels[experiment.task.heads[0]]) if balanced else None
    arrays = jax.device_put(
        Arrays(train.images, dict(train.labels), classes, dataset.window), replicated(mesh)
    )
    where = shardings_of(states)

    @functools.cache
    def steps_in(phase: float):
        optimizer = transfer.optimizer(experiment.optimizer, last_step, step_of, phase)
        return make_steps(experiment, model, optimizer, examples, mesh, phase, where)

    whole = functools.partial(jax.device_put, device=replicated(mesh))
    seeds = whole(tuple(jnp.uint32(run.experiment.seed) for run in runs))
    # Of all at once: they are evaluated at the same steps, and only one alone stops early.
    decisions = runs[0].decisions
    step, patience = int(states[0].step), experiment.selection.patience
    due_after = functools.partial(
        next_evaluation, experiment, examples=examples, last_step=last_step
    )
    if step < last_step and not (patience and decisions.stale >= patience):
        phase, _ = transfer.phase_at(step, step_of, last_step)
        expected = estimate(
            experiment, dataset.image_shape, splits, evaluator, states, steps_in(phase),
            (arrays, seeds), last_step - step, evaluations_after(step, due_after, last_step),
            interruption.check,
        )  # fmt: skip
        progress.say(str(expected))
    if dry:
        return [Result(run.workdir, step, {}) for run in runs]

    best = (experiment.selection.metric, experiment.direction)
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(
                MetricsWriter(
                    run.workdir,
                    restored_step=restored,
                    evaluated_step=run.decisions.evaluated,
                    enabled=first,
                )
            )
            for run in runs
        ]
        checkpoints = [
            stack.enter_context(
                checkpoint.Checkpoints(
                    run.saved, keep=experiment.keep_checkpoints, best=best if validation else None
                )
            )
            for run in runs
        ]
        trace = stack.enter_context(Trace(workdir, step, enabled=profile and first))
        window = Window(experiment, examples, last_step, writers, progress)
        known = step == decisions.evaluated
        histograms = [
            Histograms(writer, whole(state.params) if known else None)
            for writer, state in zip(writers, states, strict=True)
        ]
        if step == 0 and not transfer.cache_after:
            seen = first_images(experiment, examples, mesh, arrays, seeds)
            for writer, images in zip(writers, seen, strict=True):
                show_training_images(writer, images)

        def save(figures: Sequence[Mapping[str, float] | None]) -> None:
            seconds = before + (time.monotonic() - started) / len(runs)
            for run, kept, state, metrics in zip(runs, checkpoints, states, figures, strict=True):
                run.decisions.seconds = seconds
                kept.save(state, dataclasses.asdict(run.decisions), metrics)

        def saved_and_stopped() -> UserError:
            save([None] * len(runs))
            for kept in checkpoints:
                kept.wait()
            return interruption.error(f"step {step:,} is saved in {workdir}")

        # The loop. Each pass evaluates if that is due, or else trains up to where it will be due.
        # In this order: what a stopped evaluation would have decided is decided on the next start.
        while True:
            due = due_after(decisions.evaluated)
            if step >= due and step > decisions.evaluated:
                figures: list[dict[str, float] | None] = [None] * len(runs)
                if validation is not None:
                    for place, state in enumerate(states):
                        outcome = evaluator(
                            state.variables(), validation, stop=lambda: interruption
                        )
                        if outcome is None:
                            raise saved_and_stopped()
                        means = experiment.fitted_task.means(outcome[0])
                        if not math.isfinite(means["loss"]):
                            raise not_finite("validation loss", means["loss"], step)
                        figures[place] = means
                for place, run in enumerate(runs):
                    if measured := figures[place]:
                        writers[place].write(step, "validation", measured, epoch=window.epoch(step))
                        decide(experiment, run.decisions, measured)
                    histograms[place].write(step, whole(states[place].params))
                    run.decisions.evaluated = step
                window.say_epoch(step, figures)
                save(figures)
            if patience and decisions.stale >= patience:
                progress.say(f"Stopped early: {decisions.stale} evaluations without a better one.")
                break
            if step >= last_step:
                break
            if interruption:
                window.flush(step)
                raise saved_and_stopped()
            due = due_after(decisions.evaluated)
            ops.return_freed_memory()
            while step < due and not interruption:
                phase, until = transfer.phase_at(step, step_of, due)
                count = min(ops.current_formulation().steps_per_dispatch, until - step)
                states, metrics = trace(steps_in(phase))(states, arrays, seeds, count)
                step += count
                window.add(step, metrics)
            window.flush(step)

        results = []
        for run, kept, state, writer in zip(runs, checkpoints, states, writers, strict=True):
            kept.wait()
            if experiment.selection.report == "best":
                chosen = agreed(reported_step(experiment, run.workdir) if first else None)
                assert chosen is not None, "reported_step raises where there is none"
                like = abstract_state(experiment, dataset.image_shape, mesh)
                state, _ = checkpoint.restore(run.saved, chosen, like)
            if first:
                seconds = round(before + (time.monotonic() - started) / len(runs), 1)
                facts = folders.read_json(run.workdir / folders.RUN)
                folders.write_json(
                    run.workdir / folders.RUN, facts | {"steps": step, "wall_seconds": seconds}
                )
            results.append(
                report(experiment, run.workdir, dataset, splits, state, evaluator, writer)
            )
        return results


def describe(
    run: Run,
    experiment: Training,
    dataset: Dataset,
    mesh: Mesh,
    parameters: int,
    weights: Loaded | None,
    step: int,
) -> None:
    """Writes down what a run is, in its folder; `experiment` is bound to the data."""
    entry = registry().get(experiment.name)
    folders.describe(
        run.experiment,
        run.workdir,
        step=step,
        devices=map(str, mesh.devices.flat),
        document=entry.document if entry else "-",
        document_results=dict(entry.document_results) if entry else {},
        data={"name": dataset.name, **dataset.provenance},
        parameters=parameters,
        **({"pretrained": dataclasses.asdict(weights)} if weights else {}),
    )
    seeded = dataclasses.replace(experiment, seed=run.experiment.seed)
    folders.write_json(
        run.workdir / folders.BOUND,
        {
            "experiment": to_dict(seeded),
            "image_shape": dataset.image_shape,
            "class_names": dataset.class_names,
        },
    )


# The train step ----------------------------------------------------------------------------------


def first_state(
    experiment: Training,
    optimizer: optax.GradientTransformation,
    dataset: Dataset,
    mesh: Mesh,
) -> tuple[TrainState, Loaded | None]:
    """The state that training starts from, and what it has of pretrained weights."""
    state = initial_state(experiment, experiment.model, optimizer, dataset, mesh)
    if count := getattr(experiment.model, "init_images", 0):
        train = dataset.splits["train"].images
        # A split may be sorted by class: from all of it.
        places = np.linspace(0, len(train) - 1, min(count, len(train))).astype(int)
        images = scaled(jnp.asarray(train[places]), experiment)
        params = experiment.model.with_images(state.params, images)
        state = with_variables(state, {"params": params, **state.model_state})
    return with_pretrained(experiment, state) if experiment.pretrained.source else (state, None)


def initial_state(
    experiment: Training,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    dataset: Dataset,
    mesh: Mesh,
) -> TrainState:
    """The state before the first step, computed under jit where it will stay."""
    init = functools.partial(
        init_state,
        model,
        optimizer,
        image_shape=dataset.image_shape,
        ema=bool(experiment.optimizer.ema_decay),
    )
    key = stream_key(experiment.seed, "init")
    shapes = jax.eval_shape(init, key)
    where = state_shardings(mesh, shapes, sharded=experiment.shard_parameters)
    return jax.jit(init, out_shardings=where)(key)


def with_pretrained(experiment: Training, state: TrainState) -> tuple[TrainState, Loaded]:
    """The initial state with weights of a file or of a run in it, and what became of them."""
    variables = {"params": state.params, **state.model_state}
    folder = Path(experiment.pretrained.source)
    weights = weights_of_run(folder) if folder.is_dir() else None
    variables, loaded = load_pretrained(experiment.model, variables, experiment.pretrained, weights)
    return with_variables(state, variables), loaded


def with_variables(state: TrainState, variables: Mapping[str, Any]) -> TrainState:
    """A state before the first step that starts from these variables, averages included."""
    # Averages are copies, because donated buffers must not be shared.
    ema = jax.tree.map(np.array, dict(variables)) if state.ema else {}
    rest = {name: value for name, value in variables.items() if name != "params"}
    where = shardings_of(state)
    state = dataclasses.replace(state, params=variables["params"], model_state=rest, ema=ema)
    return jax.device_put(state, where)


def shardings_of(state: Any) -> Any:
    """Where each of its arrays is."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def make_steps(
    experiment: Training,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    examples: int,
    mesh: Mesh,
    phase: float = 0.0,
    where: Any = None,
) -> Callable[
    [tuple[TrainState, ...], Arrays, tuple[jax.Array, ...], int],
    tuple[tuple[TrainState, ...], dict[str, jax.Array]],
]:
    """The jitted `(states, arrays, seeds, count) -> (states, metrics)`, which does `count` steps.

    One state with its seed, or several that are trained at once. Their buffers are donated.
    Metrics are (sum, count), float32 `[count, states, 2]` each. `where` has the shardings of the
    states' arrays; None: every device holds all of them.
    """
    frozen = experiment.transfer.frozen(phase)
    step = functools.partial(train_step, experiment, model, optimizer, examples)

    def in_turn(states, arrays, seeds):
        """A step of each state, with every batch divided among all devices."""
        each = [
            step(mesh, frozen, state, arrays, seed)
            for state, seed in zip(states, seeds, strict=True)
        ]
        return tuple(state for state, _ in each), _stacked([metrics for _, metrics in each])

    def at_once(states, arrays, seeds):
        """A step of states along a leading axis, which is divided among the devices."""
        every = jax.vmap(functools.partial(step, None, frozen), in_axes=(0, None, 0))
        data = P("data")
        return jax.shard_map(
            every, mesh=mesh, in_specs=(data, P(), data), out_specs=data, check_vma=False
        )(states, arrays, seeds)

    def repeated(step, states, arrays, seeds, count):
        if count == 1:
            states, metrics = step(states, arrays, seeds)
            return states, {name: value[None] for name, value in metrics.items()}
        return jax.lax.scan(lambda states, _: step(states, arrays, seeds), states, None, count)

    @functools.partial(
        jax.jit,
        static_argnames="count",
        donate_argnums=0,
        out_shardings=(where or replicated(mesh), replicated(mesh)),
    )
    def steps(states, arrays, seeds, count):
        how = ops.current_formulation()
        if len(states) == 1 or len(states) % mesh.size or not how.vmapped_replicas:
            return repeated(in_turn, states, arrays, seeds, count)
        # Not measured under vmap.
        with ops.use_formulation(dataclasses.replace(how, sliced_weight_gradient=False)):
            after, metrics = repeated(at_once, _stacked(states), arrays, _stacked(seeds), count)
        return tuple(_one_of(after, place) for place in range(len(states))), metrics

    return steps


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _one_of(stacked: Any, place: int) -> Any:
    return jax.tree.map(lambda leaves: leaves[place], stacked)


def train_step(
    experiment: Training,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    examples: int,
    mesh: Mesh | None,
    frozen: Callable[[str], bool] | None,
    state: TrainState,
    arrays: Arrays,
    seed: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step, a pure function of (state, arrays, seed): all randomness is keyed by the step.

    Args:
        experiment: what is trained.
        model: bound to the data's classes.
        optimizer: of `experiment`, for its number of steps.
        examples: that an epoch sees.
        mesh: the batch is split over its axis `data`; None: one device has all of it.
        frozen: whether a layer keeps its parameters and statistics, by its path; None: none does.
        state: before the step.
        arrays: the training split.
        seed: uint32 `[]`.

    Returns:
        The state after the step, and its metrics: (sum, count), float32 `[2]` each.
    """
    images, targets = batch(experiment, examples, mesh, arrays, seed, state.step)
    dropout = jax.random.fold_in(stream_key(seed, "dropout"), state.step)
    task, parts = experiment.fitted_task, experiment.accumulate

    def summed(function, outputs, targets):
        """(sum, count) of each metric or term, over all targets."""
        each = [function(outputs, labels, share) for labels, share in targets]
        return jax.tree.map(lambda *terms: sum(terms), *each)

    def apply(params, model_state, images, dropout):
        with frozen_statistics(frozen):
            return model.apply(
                {"params": params, **model_state},
                images,
                train=True,
                mutable=[*model_state, "auxiliary"],
                rngs={"dropout": dropout},
            )

    def objective(params, model_state, images, targets, dropout, counts=None):
        """Of the batch; or a part's share in it, where `counts` has the batch's of all terms."""
        params = stopped(frozen, params)
        logits, model_state = apply(params, model_state, images, dropout)
        # What a model's auxiliary heads say in training: (weight, logits) each.
        auxiliary = jax.tree.leaves(model_state.pop("auxiliary", {}), is_leaf=_is_head)
        penalty = experiment.penalty(params) / parts if experiment.penalty else jnp.float32(0)
        value = penalty
        for weight, said in [(1.0, logits), *auxiliary]:
            terms = summed(task.objective, said, targets)
            value += weight * task.total(
                {
                    name: total / jnp.maximum(counts[name] if counts else count, 1e-6)
                    for name, (total, count) in terms.items()
                }
            )
        sums = dict(summed(task.sums, logits, targets))
        if experiment.penalty:
            sums["penalty"] = (penalty, jnp.float32(1 / parts))
        if experiment.penalty or task.own_objective or auxiliary:
            sums["objective"] = (value, jnp.float32(1 / parts))
        return value, (sums, model_state)

    # Where devices keep shares of the parameters, these are gathered here, once a step.
    params = state.params
    if mesh is not None:
        params = jax.lax.with_sharding_constraint(params, replicated(mesh))
    gradient = jax.grad(objective, has_aux=True)
    if parts == 1:
        gradients, (sums, model_state) = gradient(
            params, state.model_state, images, targets, dropout
        )
    else:
        # What a term counts is known from the labels alone.
        logits, _ = jax.eval_shape(apply, params, state.model_state, images, dropout)
        terms = summed(task.objective, jnp.zeros(logits.shape, logits.dtype), targets)
        counts = {name: count for name, (_, count) in terms.items()}

        def add_part(carry, part):
            total, model_state = carry
            more, (sums, model_state) = gradient(params, model_state, *part, counts)
            return (jax.tree.map(jnp.add, total, more), model_state), sums

        # Every part has as many of each device's images.
        images, targets = jax.tree.map(
            lambda values: values.reshape(-1, parts, *values.shape[1:]).swapaxes(0, 1),
            (images, targets),
        )
        (gradients, model_state), sums = jax.lax.scan(
            add_part,
            (jax.tree.map(jnp.zeros_like, params), state.model_state),
            (images, targets, jax.random.split(dropout, parts)),
            # Where loops are slow, steps are not dispatched in one, either.
            unroll=ops.current_formulation().steps_per_dispatch == 1,
        )
        sums = jax.tree.map(lambda values: values.sum(axis=0), sums)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = averaged(experiment.optimizer.ema_decay, state, {"params": params, **model_state})
    after = TrainState(
        step=state.step + 1,
        params=params,
        model_state=_kept(frozen, state.model_state, model_state),
        opt_state=opt_state,
        ema=_kept(frozen, state.ema, ema),
    )
    return after, {name: jnp.stack(pair) for name, pair in sums.items()}


def batch(
    experiment: Training,
    examples: int,
    mesh: Mesh | None,
    arrays: Arrays,
    seed: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, list[tuple[Mapping[str, jax.Array], jax.Array]]]:
    """What a step trains on; the arguments are those of `train_step`.

    Returns:
        The images as the model takes them, and (labels, share of each image that they are about,
        float32 `[batch]`): one pair, or two where images are mixed.
    """
    size, augmentation = experiment.batch_size, experiment.augmentation
    if arrays.classes is not None:
        indices, draws = balanced_indices(seed, step, size, arrays.classes)
    else:
        indices, draws = batch_indices(seed, step, size, examples)
    keys = example_keys(stream_key(seed, "augmentation"), draws, indices)
    count, window = len(arrays.images), arrays.window
    copy = indices // count % augmentation.copies

    def taken(indices, keys):
        images, labels = arrays.images, arrays.labels
        if window is None:
            images, labels = jax.tree.map(lambda values: values[indices], (images, labels))
        else:
            corners = random_corners(keys, images.shape[1:3], window)
            images, labels = jax.tree.map(
                lambda values: windows_of(values, indices, corners, window), (images, labels)
            )
        found = (images, labels, keys)
        if mesh is None:
            return found
        return jax.lax.with_sharding_constraint(found, batch_sharded(mesh))

    def changed(keys, images):
        if experiment.transfer.cache_after:
            return one_view(keys, images)
        if not (augmentation.changes or augmentation.size):
            return images
        return stages.apart(lambda: augmentation(keys, images, copy), step)

    images, labels, keys = taken(indices % count, keys)
    images, targets = changed(keys, images), [(labels, jnp.ones(size, jnp.float32))]
    if augmentation.mixes:
        others, other_labels, other_keys = taken(
            augmentation.partners(keys, count), fold_name(keys, "other")
        )
        images, share = augmentation.mixed(keys, images, changed(other_keys, others))
        targets = [(labels, share), (other_labels, 1 - share)]
    if experiment.task.sees_images:
        targets = [({**labels, PIXELS: images}, share) for labels, share in targets]
    return images if experiment.transfer.cache_after else scaled(images, experiment), targets


def first_images(
    experiment: Training,
    examples: int,
    mesh: Mesh,
    arrays: Arrays,
    seeds: Sequence[jax.Array],
) -> list[np.ndarray]:
    """What the first step trains on with each seed, uint8 `[batch, height, width, channels]`; the
    other arguments are those of `train_step`."""

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def images(arrays, seed):
        seen, _ = batch(experiment, examples, mesh, arrays, seed, jnp.int32(0))
        pixels = seen * jnp.array(experiment.std) + jnp.array(experiment.mean)
        return jnp.clip(jnp.rint(255 * pixels), 0, 255).astype(jnp.uint8)

    return [np.asarray(images(arrays, seed)) for seed in seeds]


def _kept(frozen: Callable[[str], bool] | None, old: Any, new: Any) -> Any:
    """Per collection of variables: `old` where layers are frozen, else `new`."""
    return {name: with_frozen(frozen, old[name], new[name]) for name in new}


def _is_head(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], float)


def averaged(decay: float, state: TrainState, new: Mapping[str, Any]) -> Any:
    """The moving average after a step; young averages forget faster, so that none starts stale."""
    if not state.ema:
        return state.ema
    weight = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    return jax.tree.map(lambda old, now: weight * old + (1 - weight) * now, state.ema, dict(new))


# Around the loop ---------------------------------------------------------------------------------


class Window:
    """Collects the metrics of steps, one dispatch behind, so that the device never waits for them.

    With `keep_memory` at once: a step that waits for another takes its memory beside it, which is
    much there, and what the device waits is nothing beside such steps.

    Of one run or several; on the terminal stand the means over all of them. Raises `UserError`
    from any method once a metric is not finite.
    """

    def __init__(
        self,
        experiment: Training,
        examples: int,
        last_step: int,
        writers: Sequence[MetricsWriter],
        progress: Progress,
    ):
        self._experiment = experiment
        self._epoch_steps = examples / experiment.batch_size
        self._rate = experiment.optimizer.learning_rate_at(last_step)
        self._writers, self._progress = writers, progress
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._row: dict[str, np.ndarray] = {}
        self._epoch: dict[str, np.ndarray] = {}
        self._fetched_at: float | None = None

    def epoch(self, step: int) -> float:
        """How many epochs a step completes."""
        return step / self._epoch_steps

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes what a dispatch that ends at `step` returned; fetches what is due."""
        self._fetch()
        self._pending = step, metrics
        if self._experiment.keep_memory:
            self._fetch()

    def flush(self, step: int) -> None:
        """Fetches what is pending, and writes the rows up to `step`."""
        self._fetch()
        self._write(step)
        self._fetched_at = None

    def say_epoch(self, step: int, validation: Sequence[Mapping[str, float] | None]) -> None:
        """Says what the steps since the last evaluation came to; `validation` is of each run."""
        training = self._means({name: pairs.sum(axis=0) for name, pairs in self._epoch.items()})
        known = [figures for figures in validation if figures]
        names = known[0] if known else {}
        means = {name: float(np.mean([figures[name] for figures in known])) for name in names}
        self._progress.evaluated(step, self.epoch(step), training, means or None)
        self._epoch = {}

    def _fetch(self) -> None:
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: np.asarray(value, np.float64) for name, value in metrics.items()}
        now = time.monotonic()
        count = len(next(iter(values.values())))
        # The first dispatch after a start or an evaluation may have waited for a compilation.
        if self._fetched_at is not None:
            self._progress.trained(count, now - self._fetched_at)
        self._fetched_at = now
        for name, pairs in values.items():
            wrong = np.argwhere(~np.isfinite(pairs[..., 0]))
            if wrong.size:
                at, run = wrong[0]
                raise not_finite(name, pairs[at, run, 0], step - count + 1 + int(at))
            self._row[name] = self._row.get(name, 0) + pairs.sum(axis=0)
            self._epoch[name] = self._epoch.get(name, 0) + pairs.sum(axis=0)
        newest = self._means({name: pairs[-1].sum(axis=0) for name, pairs in values.items()})
        self._progress.step(step, newest["loss"])
        if step // self._experiment.log_every > (step - count) // self._experiment.log_every:
            self._write(step)

    def _write(self, step: int) -> None:
        if not self._row:
            return
        speed, rate = self._progress.images_per_second, float(self._rate(step - 1))
        for place, writer in enumerate(self._writers):
            row = {name: pairs[place] for name, pairs in self._row.items()}
            writer.write(
                step,
                "train",
                {
                    **self._means(row),
                    "images_per_second": speed / len(self._writers),
                    "learning_rate": rate,
                },
                epoch=self.epoch(step),
                # Of examples; a head may know fewer of their labels.
                count=round(max(count for _, count in row.values())),
            )
        self._row = {}

    def _means(self, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        return self._experiment.fitted_task.means(
            {name: (float(total), float(count)) for name, (total, count) in sums.items()}
        )


def not_finite(name: str, value: float, step: int) -> UserError:
    """The error of a run that has lost its way."""
    return UserError(
        f"the {name} is {value} at step {step:,}: training stopped, and the checkpoints from "
        "before are kept; try a lower --optimizer.learning-rate, or --optimizer.clip-norm=1"
    )


def next_evaluation(experiment: Training, after: int, examples: int, last_step: int) -> int:
    """The first step after step `after` at which an evaluation is due; the last step at most."""
    every = experiment.evaluate_every
    done = math.floor(after * experiment.batch_size / examples / every)
    for number in (done, done + 1, done + 2):
        due = steps_at(number * every, experiment.batch_size, examples)
        if number and due > after:
            return min(due, last_step)
    return last_step


def evaluations_after(step: int, due_after: Callable[[int], int], last_step: int) -> int:
    """How many evaluations are to come after a step; `due_after` says when the next one is."""
    count = 0
    while step < last_step:
        step, count = due_after(step), count + 1
    return count


def decide(experiment: Training, decisions: Decisions, figures: Mapping[str, float]) -> None:
    """Takes note of an evaluation's figures."""
    value = figures[experiment.selection.metric]
    if math.isfinite(value) and is_better(value, decisions.best, experiment.direction):
        decisions.best, decisions.stale = value, 0
    else:
        decisions.stale += 1


def check_data(experiment: Training, dataset: Dataset) -> None:
    """Raises `UserError` for data that the experiment cannot be trained on."""
    experiment.task.check_data(dataset)
    channels = dataset.image_shape[2]
    for name, values in (("mean", experiment.mean), ("std", experiment.std)):
        if len(values) not in (1, channels):
            raise UsageError(
                f"--{name} has {len(values)} numbers, but images of data set {dataset.name} have "
                f"{channels} channel{'s' * (channels > 1)}: give one number, or one for each"
            )
    examples = len(dataset.splits["train"]) * dataset.windows
    if experiment.batch_size > examples:
        raise UsageError(
            f"--batch-size is {experiment.batch_size}, but data set {dataset.name} has only "
            f"{examples} training examples: take a smaller batch"
        )
    heads = experiment.task.heads
    if experiment.sampling == "balanced" and heads and heads[0] not in dataset.class_names:
        raise UsageError(
            f"--sampling=balanced draws classes equally often, but '{heads[0]}' of data set "
            f"{dataset.name} has numbers: leave it uniform"
        )
    chooses = experiment.selection.patience or experiment.selection.report == "best"
    if chooses and "validation" not in dataset.splits:
        raise UsageError(
            f"--selection chooses by validation {experiment.selection.metric}, but data set "
            f"{dataset.name} has no validation split: set --data.validation above 0"
        )
