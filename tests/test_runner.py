"""The runner: exact resumption, damaged checkpoints, what stops a run, and every step's numbers.

Runs are of a tiny network on noise, and their reports are left out: others test those.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import flagsaver
from PIL import Image

from benchmarks import evaluation_exactness
from benchmarks.results import digest, last_checkpoint, rows_of
from cnn_research import ops
from cnn_research.cli import main as cli
from cnn_research.cli.run import run
from cnn_research.core import run_folder as folders
from cnn_research.core.distributed import data_mesh
from cnn_research.core.errors import Interrupted, UsageError, UserError
from cnn_research.core.experiment import lookup
from cnn_research.core.metrics_log import read_metrics
from cnn_research.core.random import permuted, stream_key
from cnn_research.data.augmentation.config import Augmentation
from cnn_research.data.batches import batch_indices, epochs_to_steps
from cnn_research.data.sources.folder import ImageFolder
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.models.convnet import ConvNet
from cnn_research.models.mlp import MLP
from cnn_research.models.resnet9 import ResNet9
from cnn_research.train import checkpoint, evaluator, loop
from cnn_research.train import step as stepping
from cnn_research.train.config import Selection, Training
from cnn_research.train.optimizers import Optimizer, Penalty
from cnn_research.train.state import TrainState, initial_state
from cnn_research.train.step import moving_average
from cnn_research.train.step_metrics import StepMetrics

pytestmark = pytest.mark.usefixtures("no_report")

ROOT = Path(__file__).resolve().parent.parent

# 40 examples in batches of 16: an epoch is 2.5 steps, so batches run across epochs. Evaluations
# and checkpoints fall on steps 3, 5, 8, 10, 13 and 15.
TINY = Training(
    data=Synthetic(train=40, validation=13, test=11, image_shape=(6, 6, 1), classes=(4,)),
    model=ConvNet(features=(4,), padding=(1,), dense=(8,), dense_activation="relu", dropout=0.2),
    optimizer=Optimizer(
        name="adamw", learning_rate=1e-2, schedule="cosine", weight_decay=0.01, ema_decay=0.9
    ),
    augmentation=Augmentation(mirror=True, shift=1),
    epochs=6,
    batch_size=16,
    log_every_steps=2,
)
LAST_STEP = 15


def tiny(**changes):
    return dataclasses.replace(TINY, **changes)


def rated(**changes):
    """TINY with another optimizer, of a constant rate."""
    return tiny(optimizer=Optimizer(**changes))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run of TINY that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    run(TINY, workdir)
    return workdir


def copy_of(workdir, tmp_path):
    return Path(shutil.copytree(workdir, tmp_path / "copy"))


def state_of(workdir):
    return last_checkpoint(workdir)[1]


def assert_same_run(workdir, expected):
    """The same final state, bit for bit, the same validation rows and the same test figures."""
    assert digest(state_of(workdir)) == digest(state_of(expected))
    assert rows_of(workdir, "validation") == rows_of(expected, "validation")
    figures = [json.loads((w / "evaluation.json").read_text()) for w in (workdir, expected)]
    assert figures[0] == figures[1]


def at_step(patch, step, act):
    """Calls `act` once, when the runner takes note of step `step`."""
    original, left = StepMetrics.add, [step]

    def add(window, now, metrics):
        original(window, now, metrics)
        if left and now >= left[0]:
            left.clear()
            act()

    patch.setattr(StepMetrics, "add", add)


# Resumption --------------------------------------------------------------------------------------

STOPS = [
    (signal.SIGTERM, 75, int(np.random.default_rng(0).integers(1, LAST_STEP))),
    (signal.SIGUSR1, 75, 8),
    (signal.SIGINT, 130, 1),
]


@pytest.mark.parametrize(("number", "code", "step"), STOPS)
def test_an_interrupted_run_goes_on_exactly(number, code, step, alone, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, lambda: signal.raise_signal(number))
        with pytest.raises(Interrupted) as stopped:
            run(TINY, tmp_path)
    assert stopped.value.exit_code == code
    assert number.name in str(stopped.value)
    assert f"step {step} is saved" in str(stopped.value)
    assert checkpoint.newest(tmp_path / "checkpoints") == step
    assert run(TINY, tmp_path).step == LAST_STEP
    assert_same_run(tmp_path, alone)
    seen = sum(row["count"] for row in rows_of(tmp_path, "train"))
    assert seen == LAST_STEP * TINY.batch_size, "a training row is lost or there twice"


def test_a_signal_in_an_evaluation_stops_it_and_it_is_made_again(alone, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        original = evaluator.Evaluator._on_devices

        def on_devices(evaluator, arrays):
            signal.raise_signal(signal.SIGTERM)
            return original(evaluator, arrays)

        patch.setattr(evaluator.Evaluator, "_on_devices", on_devices)
        patch.setattr(loop, "say_estimate", lambda job: None)  # it evaluates a batch, too
        many = tiny(evaluation=dataclasses.replace(TINY.evaluation, batch_size=4))
        with pytest.raises(Interrupted, match="step 3 is saved"):
            run(many, tmp_path)
    assert rows_of(tmp_path, "validation") == []

    # Killed once the evaluation is written down, and before its checkpoint is.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", killed)
        with pytest.raises(Killed):
            run(many, tmp_path)
    assert [row["step"] for row in rows_of(tmp_path, "validation")] == [3]

    run(many, tmp_path)
    assert [row["step"] for row in rows_of(tmp_path, "validation")] == [3, 5, 8, 10, 13, 15]
    assert digest(state_of(tmp_path)) == digest(state_of(alone))


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def killed(*unused):
    raise Killed


def test_what_was_measured_after_the_last_checkpoint_is_measured_again(alone, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 13, killed)
        with pytest.raises(Killed):
            run(TINY, tmp_path)
    assert max(row["step"] for row in read_metrics(tmp_path)) > 10
    run(TINY, tmp_path)
    assert_same_run(tmp_path, alone)
    for split in ("train", "validation"):
        steps = [row["step"] for row in rows_of(tmp_path, split)]
        assert steps == sorted(set(steps))
    assert [r["loss"] for r in rows_of(tmp_path, "train")] == [
        r["loss"] for r in rows_of(alone, "train")
    ]


@pytest.mark.slow
def test_a_longer_run_goes_on_from_a_finished_one(tmp_path):
    constant = rated(name="sgd", learning_rate=0.01)
    run(dataclasses.replace(constant, epochs=2), tmp_path / "in two")
    run(dataclasses.replace(constant, epochs=4), tmp_path / "in two")
    run(dataclasses.replace(constant, epochs=4), tmp_path / "at once")
    assert_same_run(tmp_path / "in two", tmp_path / "at once")


CHILD = ("--experiment=digits_mlp", "--epochs=5000", "--eval-every-epochs=1", "--model.dense", "8")


def add_images(folder, count, value):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.full((8, 8, 3), value + number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def trained_on_pets(tmp_path):
    """A run in tmp_path / "run" on a folder of eight cats and eight dogs."""
    add_images(tmp_path / "pets" / "cat", 8, 0)
    add_images(tmp_path / "pets" / "dog", 8, 100)
    data = ImageFolder(str(tmp_path / "pets"), image_size=(8, 8), validation=0.25, test=0.25)
    pets = tiny(data=data, epochs=1, batch_size=4, augmentation=Augmentation())
    return pets, run(pets, tmp_path / "run")


@pytest.mark.slow
def test_parts_of_images_that_are_stored_larger_are_trained_on(tmp_path):
    parts = Augmentation(crop=(0.35, 1.0), size=(8, 8))
    larger = dataclasses.replace(TINY.data, image_shape=(12, 12, 3))
    model = ResNet9(features=(4,), pool=(True,), residual=(False,))
    result = run(tiny(data=larger, model=model, augmentation=parts, epochs=1), tmp_path)
    assert np.isfinite(result.metrics["test"]["loss"])


@pytest.mark.slow
def test_a_run_goes_on_and_is_evaluated_where_its_images_are_now(tmp_path):
    pets, before = trained_on_pets(tmp_path)
    (tmp_path / "pets").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="pets"):
        run(pets, tmp_path / "run", "evaluate")
    data = dataclasses.replace(pets.data, path=str(tmp_path / "moved"))
    moved = dataclasses.replace(pets, data=data)
    assert run(moved, tmp_path / "run", "evaluate").metrics == before.metrics
    cat = str(tmp_path / "moved" / "cat" / "0.png")
    words = "pets.* omit --neighbours to predict"
    with pytest.raises(UserError, match=words):
        run(pets, tmp_path / "run", "predict", cat, neighbours=1)
    run(moved, tmp_path / "run", "predict", cat, neighbours=1)
    longer = dataclasses.replace(moved, epochs=2)
    assert run(longer, tmp_path / "run").step == 2 * before.step


@pytest.mark.parametrize("how", ["an image more", "another class"])
def test_a_run_does_not_go_on_with_other_images(how, tmp_path):
    pets, _ = trained_on_pets(tmp_path)
    if how == "an image more":
        add_images(tmp_path / "pets" / "dog", 9, 100)
    else:
        (tmp_path / "pets" / "dog").rename(tmp_path / "pets" / "horse")
    for again in (
        lambda: run(pets, tmp_path / "run"),
        lambda: run(pets, tmp_path / "run", "evaluate"),
    ):
        with pytest.raises(UsageError, match="have changed since it was trained"):
            again()


def test_signals_end_the_program_with_their_exit_codes(tmp_path):
    children = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        workdir = tmp_path / number.name
        with (tmp_path / f"{number.name}.txt").open("wb") as said:
            words = [sys.executable, "launch.py", *CHILD, f"--workdir={workdir}"]
            children[number] = subprocess.Popen(words, cwd=ROOT, stdout=said, stderr=said)
    for number, child in children.items():
        said = tmp_path / f"{number.name}.txt"
        while b"epoch 2/" not in said.read_bytes() and child.poll() is None:
            time.sleep(0.05)
        child.send_signal(number)
    for number, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        assert children[number].wait(60) == code
        text = (tmp_path / f"{number.name}.txt").read_text()
        assert text.splitlines()[-1].startswith(f"stopped by {number.name}: step ")
        assert "Traceback" not in text
        assert checkpoint.newest(tmp_path / number.name / "checkpoints") is not None


# Checkpoints -------------------------------------------------------------------------------------


def flip_a_byte(file):
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents)


def array_file(step_folder):
    files = [file for file in step_folder.glob("state/**/*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size)


DAMAGES = {
    "a byte flipped": (lambda folder: flip_a_byte(array_file(folder)), "is damaged"),
    "a file cut short": (lambda folder: os.truncate(array_file(folder), 10), "is damaged"),
    "a file gone": (lambda folder: array_file(folder).unlink(), "is missing"),
    "no checksums": (lambda folder: (folder / "checksums.json").unlink(), "is incomplete"),
    "broken checksums": (
        lambda folder: (folder / "checksums.json").write_text("{"),
        "checksums.json is damaged",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_passed_over(what, alone, tmp_path, caplog):
    saved = copy_of(alone, tmp_path) / "checkpoints"
    assert checkpoint.newest(saved) == LAST_STEP
    do_damage, says = DAMAGES[what]
    do_damage(saved / str(LAST_STEP))
    assert checkpoint.newest(saved) == 13
    assert str(saved / str(LAST_STEP)) in caplog.text
    assert says in caplog.text


def test_a_flipped_byte_in_any_file_is_found(alone, tmp_path):
    folder = copy_of(alone, tmp_path) / "checkpoints" / str(LAST_STEP)
    assert checkpoint.damage(folder) is None
    files = [f for f in folder.rglob("*") if f.is_file() and f.stat().st_size]
    assert len(files) > 5
    for file in files:
        flip_a_byte(file)
        assert checkpoint.damage(folder) is not None, file
        flip_a_byte(file)
    assert checkpoint.damage(folder) is None


def test_training_goes_on_from_the_checkpoint_before_the_damaged_one(alone, tmp_path, capsys):
    workdir = copy_of(alone, tmp_path)
    flip_a_byte(array_file(workdir / "checkpoints" / str(LAST_STEP)))
    run(TINY, workdir)
    assert "Resuming from the checkpoint of step 13." in capsys.readouterr().err
    assert_same_run(workdir, alone)
    assert (workdir / "damaged_checkpoints" / str(LAST_STEP)).is_dir()


def test_without_a_good_checkpoint_nothing_is_evaluated(alone, tmp_path):
    workdir = copy_of(alone, tmp_path)
    for sums in workdir.glob("checkpoints/*/checksums.json"):
        sums.unlink()
    with pytest.raises(UserError, match="no valid checkpoint"):
        run(TINY, workdir, "evaluate")


def test_a_second_process_in_the_workdir_is_refused(alone):
    with (
        folders.locked(alone),
        pytest.raises(UserError, match=f"another process .*{os.getpid()}.* is running in"),
    ):
        run(TINY, alone)


def test_a_full_disk_ends_in_one_line_and_keeps_the_checkpoint_before(tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")
    try:
        words = ["--experiment=digits_mlp", "--model.dense", "32", f"--workdir={disk / 'run'}"]
        with flagsaver.flagsaver():
            cli.main(cli.parse_flags(["launch.py", *words, "--epochs=1"]))
        before = digest(state_of(disk / "run"))
        status = os.statvfs(disk)
        # Room for the rows of metrics, not for a checkpoint.
        (disk / "filler").write_bytes(bytes(status.f_bavail * status.f_frsize - 16_384))
        capsys.readouterr()
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
            cli.main(cli.parse_flags(["launch.py", *words, "--epochs=2"]))
        assert end.value.code == 1
        said = capsys.readouterr().err
        assert "Traceback" not in said
        last = said.splitlines()[-1]
        assert last.startswith("error: ") and "the disk is full" in last and "free some" in last
        assert digest(state_of(disk / "run")) == before
    finally:
        # Lazily: threads of the save that failed may still hold a file.
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_device_without_memory_is_no_full_disk(tmp_path):
    def said(text):
        return str(checkpoint._save_error(ValueError(text), tmp_path, 3))

    assert "the disk is full" in said(
        "RESOURCE_EXHAUSTED: Failed to write: No space left on device"
    )
    assert said("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes").startswith("out of memory")


# Profiles ----------------------------------------------------------------------------------------


def test_a_profiled_run_is_the_same_run_and_leaves_a_trace(alone, tmp_path, capsys):
    run(TINY, tmp_path, profile=True)
    assert_same_run(tmp_path, alone)
    (file,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    *_, profile, advice = capsys.readouterr().out.splitlines()
    assert profile == f"Profile: {file}" and "https://ui.perfetto.dev" in advice
    with gzip.open(file) as trace:
        events = json.load(trace)["traceEvents"]
    steps = [int(event["args"]["step_num"]) for event in events if event.get("name") == "train"]
    assert sorted(steps) == [3, 4, 5, 6, 7]  # the first three warm up
    assert any(event.get("args", {}).get("hlo_module") == "jit_steps" for event in events)

    run(TINY, tmp_path, profile=True)
    assert "Nothing was profiled" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--profile works only with --mode=train"):
        run(TINY, tmp_path, "evaluate", profile=True)


# Numbers that are not finite ---------------------------------------------------------------------


def test_a_loss_that_is_nan_stops_the_run_and_names_the_step(alone, tmp_path):
    original = stepping.train_step

    def broken(*arguments):
        state, metrics = original(*arguments)
        bad = state.step == 7
        return state, metrics | {"loss": jnp.where(bad, jnp.nan, metrics["loss"])}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepping, "train_step", broken)
        with pytest.raises(UserError, match="the loss is nan at step 7") as stopped:
            run(TINY, tmp_path)
    assert stopped.value.exit_code == 1
    assert checkpoint.newest(tmp_path / "checkpoints") == 5
    run(TINY, tmp_path)
    assert_same_run(tmp_path, alone)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    """The loss of the step that spoilt the state was still finite: only the evaluation shows it."""
    original = stepping.train_step

    def broken(*arguments):
        state, metrics = original(*arguments)
        spoilt = jax.tree.map(
            lambda leaf: jnp.where(state.step == 5, jnp.inf, leaf), (state.params, state.ema)
        )
        return state.replace(params=spoilt[0], ema=spoilt[1]), metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepping, "train_step", broken)
        with pytest.raises(UserError, match="at step 5"):
            run(TINY, tmp_path)
    assert checkpoint.newest(tmp_path / "checkpoints") == 3


def test_a_huge_learning_rate_is_told_to_be_lowered(tmp_path):
    wild = dataclasses.replace(rated(name="sgd", learning_rate=1e30), eval_every_epochs=6)
    with pytest.raises(UserError, match=r"at step [23]: .* lower --optimizer\.learning-rate"):
        run(wild, tmp_path)


# Batches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("examples", "batch"), [(10, 3), (40, 16), (7, 7), (5, 1), (100, 33)])
def test_each_epoch_has_every_example_once(examples, batch):
    epochs = 3
    draw = jax.jit(lambda step: batch_indices(0, step, batch, examples))
    drawn = [draw(jnp.int32(step)) for step in range(epochs_to_steps(epochs, batch, examples))]
    indices = np.concatenate([i for i, _ in drawn])[: epochs * examples].reshape(epochs, examples)
    of_epoch = np.concatenate([e for _, e in drawn])[: epochs * examples].reshape(epochs, examples)
    for epoch in range(epochs):
        assert sorted(indices[epoch]) == list(range(examples))
        assert set(of_epoch[epoch]) == {epoch}
    orders = {tuple(order) for order in indices}
    assert len(orders) == epochs, "epochs come in the same order"


def test_batch_order_depends_on_the_seed():
    orders = {tuple(np.asarray(batch_indices(seed, jnp.int32(0), 50, 50)[0])) for seed in range(4)}
    assert len(orders) == 4


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 10, 97, 256, 257, 1000, 50_000])
def test_permuted_is_a_permutation(size):
    keys = jnp.broadcast_to(jax.random.key(3), (size,))
    places = np.asarray(jax.jit(permuted, static_argnums=2)(keys, jnp.arange(size), size))
    assert np.array_equal(np.sort(places), np.arange(size))


def test_permutations_are_as_random_as_they_look():
    """Each of the places of a small permutation is taken equally often, over many keys."""
    size, keys = 5, 4000
    every = jnp.repeat(jax.random.split(jax.random.key(0), keys), size)
    places = permuted(every, jnp.tile(jnp.arange(size), keys), size).reshape(keys, size)
    counts = np.stack([np.bincount(places[:, at], minlength=size) for at in range(size)])
    # 25 counts of mean 800 and deviation 25: five deviations are never met by chance.
    assert np.abs(counts - keys / size).max() < 5 * np.sqrt(keys / size)
    assert len(np.unique(np.asarray(places), axis=0)) == 120, "some orders of five never come"


@pytest.mark.parametrize(
    ("epochs", "batch", "examples", "steps"),
    [(1, 16, 40, 3), (2, 16, 40, 5), (0.5, 16, 40, 2), (1, 40, 40, 1), (0.001, 16, 40, 1)],
)
def test_steps_of_epochs(epochs, batch, examples, steps):
    assert epochs_to_steps(epochs, batch, examples) == steps


def test_streams_and_seeds_do_not_share_numbers():
    bits = {
        (seed, stream): int(jax.random.bits(stream_key(seed, stream)))
        for seed in (0, 1, 2)
        for stream in ("init", "order", "augmentation", "dropout")
    }
    assert len(set(bits.values())) == len(bits)


# Optimizers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, {0: 1, 50: 1, 99: 1}),
        ("constant", 0.2, {0: 1 / 20, 9: 0.5, 19: 1, 20: 1, 99: 1}),
        ("cosine", 0.0, {0: 1, 25: 0.853553, 50: 0.5, 75: 0.146447, 100: 0}),
        ("cosine", 0.2, {0: 1 / 20, 19: 1, 20: 1, 60: 0.5, 100: 0}),
        ("linear", 0.2, {0: 1 / 20, 19: 1, 20: 1, 60: 0.5, 80: 0.25, 100: 0}),
    ],
)
def test_learning_rates(schedule, warmup, expected):
    rate = Optimizer(learning_rate=1.0, schedule=schedule, warmup=warmup).learning_rate_at(100)
    assert {step: float(rate(step)) for step in expected} == pytest.approx(expected, abs=1e-6)


PARAMS = {
    "Conv_0": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)},
    "BatchNorm_0": {"scale": jnp.full(2, 2.0), "bias": jnp.full(2, 2.0)},
}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_pulls_kernels_only(name):
    optimizer = Optimizer(name=name, learning_rate=0.5, weight_decay=0.1).build(10)
    nothing = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(nothing, optimizer.init(PARAMS), PARAMS)
    kernel = updates["Conv_0"].pop("kernel")
    assert np.allclose(kernel, -0.5 * 0.1 * 2)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))


def test_clipping_limits_the_norm_of_the_whole_gradient():
    optimizer = Optimizer(name="sgd", learning_rate=1.0, momentum=0.0, clip_norm=1.5).build(10)
    gradient = jax.tree.map(lambda leaf: 3 * jnp.ones_like(leaf), PARAMS)
    updates, _ = optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)
    assert float(optax.global_norm(updates)) == pytest.approx(1.5, rel=1e-6)
    small = jax.tree.map(lambda leaf: 1e-3 * leaf, gradient)
    unclipped, _ = optimizer.update(small, optimizer.init(PARAMS), PARAMS)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, -b), unclipped, small))


def test_momentum_of_sgd_by_hand():
    optimizer = Optimizer(name="sgd", learning_rate=0.1, momentum=0.9).build(10)
    params, velocity = {"kernel": jnp.float32(1)}, 0.0
    state = optimizer.init(params)
    for gradient in (1.0, -2.0, 0.5):
        update, state = optimizer.update({"kernel": jnp.float32(gradient)}, state, params)
        velocity = 0.9 * velocity + gradient
        assert float(update["kernel"]) == pytest.approx(-0.1 * velocity, rel=1e-6)


def test_adam_has_no_weight_decay():
    with pytest.raises(UsageError, match=r"--optimizer\.weight-decay needs"):
        Optimizer(name="adam", weight_decay=0.1).check()


def test_penalty_is_the_painters_papers_formula():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(3, 3, 1, 4)), rng.normal(size=(10, 5))
    params = {
        "Conv_0": {"kernel": jnp.asarray(first), "bias": jnp.ones(4)},
        "Dense_0": {"kernel": jnp.asarray(second), "bias": jnp.ones(5)},
    }
    weights = np.concatenate([first.ravel(), second.ravel()])
    lasso = 0.3 * np.mean(np.abs(weights))
    ridge = 0.7 / 2 * np.mean(weights**2)
    assert float(Penalty(l1=0.3)(params)) == pytest.approx(lasso, rel=1e-5)
    assert float(Penalty(l2=0.7)(params)) == pytest.approx(ridge, rel=1e-5)
    assert float(Penalty(l1=0.3, l2=0.7)(params)) == pytest.approx(lasso + ridge, rel=1e-5)
    assert not Penalty()


def test_penalty_takes_part_in_training(tmp_path):
    """With a penalty that outweighs the loss, sgd's steps are the penalty's own."""
    config = tiny(
        model=MLP(dense=()),
        optimizer=Optimizer(name="sgd", learning_rate=0.01, momentum=0.0),
        penalty=Penalty(l2=1e4),
        epochs=0.4,
    )
    run(dataclasses.replace(config), tmp_path)
    start = initial(config).params["Dense_0"]["kernel"]
    end = state_of(tmp_path).params["Dense_0"]["kernel"]
    shrunk = 1 - 0.01 * 1e4 / start.size
    assert np.allclose(end, shrunk * start, atol=0.05)
    (row,) = rows_of(tmp_path, "train")
    expected = 1e4 / 2 * float(jnp.mean(start**2))
    assert row["penalty"] == pytest.approx(expected, rel=1e-4)
    assert row["objective"] == pytest.approx(row["loss"] + row["penalty"], rel=1e-5)


def initial(config):
    dataset = config.data.load()
    model = config.task.bind(config.model, dataset)
    mesh = data_mesh()
    with jax.set_mesh(mesh):
        ready = dataclasses.replace(config, model=model)
        return initial_state(ready, dataset.image_shape, mesh)


# Moving averages ---------------------------------------------------------------------------------


def test_moving_average_follows_its_formula():
    old, average = 1.0, 1.0
    decay = 0.9
    state = TrainState(
        jnp.int32(0), {"w": jnp.float32(1)}, {}, (), {"params": {"w": jnp.float32(1)}}
    )
    for step, now in enumerate([2.0, -1.0, 5.0, 3.0]):
        new = {"params": {"w": jnp.float32(now)}}
        state = state.replace(
            step=jnp.int32(step),
            ema=moving_average(decay, state.replace(step=jnp.int32(step)), new),
        )
        weight = min(decay, (1 + step) / (10 + step))
        average = weight * average + (1 - weight) * now
        assert float(state.ema["params"]["w"]) == pytest.approx(average, rel=1e-6)
    assert old != average


def test_evaluation_uses_the_average_of_parameters_and_statistics(alone):
    state = state_of(alone)
    assert state.variables() is state.ema
    assert set(state.ema) == {"params", "batch_stats"}
    for averaged, current in (
        (state.ema["params"], state.params),
        (state.ema["batch_stats"], state.model_state["batch_stats"]),
    ):
        apart = jax.tree.map(lambda a, b: not np.array_equal(a, b), averaged, current)
        assert all(jax.tree.leaves(apart))
    without = dataclasses.replace(state, ema={})
    assert set(without.variables()) == {"params", "batch_stats"}


# Stopping early ----------------------------------------------------------------------------------


def with_validation_losses(patch, losses):
    """Evaluations in training measure these losses, by their step's order: 3, 5, 8, 10, ..."""
    steps = [3, 5, 8, 10, 13, 15]
    original = evaluator.Evaluator.__call__
    at = {"step": 0}
    at_each_step = StepMetrics.flush

    def flush(window, step):
        at["step"] = step
        return at_each_step(window, step)

    def call(evaluator, variables, split, *, stop=None):
        if stop is None:
            return original(evaluator, variables, split)
        sums, logits = original(evaluator, variables, split, stop=stop)
        return sums | {"loss": (losses[steps.index(at["step"])], 1.0)}, logits

    patch.setattr(StepMetrics, "flush", flush)
    patch.setattr(evaluator.Evaluator, "__call__", call)


def test_early_stopping_stops_and_reports_the_best(tmp_path):
    patient = tiny(selection=Selection(metric="loss", report="best", patience=3))
    losses = [3.0, 2.0, 2.5, 2.2, 2.1, 1.0]
    for name, stop_at in (("at once", None), ("interrupted", 9)):
        workdir = tmp_path / name
        with pytest.MonkeyPatch.context() as patch:
            with_validation_losses(patch, losses)
            if stop_at:
                at_step(patch, stop_at, lambda: signal.raise_signal(signal.SIGTERM))
                with pytest.raises(Interrupted):
                    run(patient, workdir)
            run(patient, workdir)
        # The best is the second, at step 5, and three that are worse are enough.
        assert [row["step"] for row in rows_of(workdir, "validation")] == [3, 5, 8, 10, 13]
        assert json.loads((workdir / "evaluation.json").read_text())["step"] == 5
        # The best stays beside the newest two.
        assert sorted(checkpoint.steps_in(workdir / "checkpoints")) == [5, 10, 13]
    assert digest(state_of(tmp_path / "at once")) == digest(state_of(tmp_path / "interrupted"))


@pytest.mark.parametrize(("higher", "values"), [(True, (0.2, 0.5, 0.5)), (False, (3, 1, 1))])
def test_of_equal_values_the_first_stays(higher, values, tmp_path):
    state = initial(TINY)
    best = ("accuracy", "maximize") if higher else ("loss", "minimize")
    with checkpoint.Checkpoints(tmp_path, keep=2, best=best) as checkpoints:
        worse = (0.1, 0.1) if higher else (9, 9)
        for step, value in enumerate((*values, *worse), start=1):
            now = state.replace(step=jnp.int32(step))
            checkpoints.save(now, {}, {best[0]: float(value)})
    assert sorted(checkpoint.steps_in(tmp_path)) == [2, 4, 5]
    assert checkpoint.best(tmp_path, *best) == 2


def test_the_best_stays_when_a_run_goes_on(tmp_path):
    state = initial(TINY)
    for steps in ((1, 2), (3, 4), (5, 6)):
        with checkpoint.Checkpoints(tmp_path, keep=2, best=("loss", "minimize")) as checkpoints:
            for step in steps:
                now = state.replace(step=jnp.int32(step))
                checkpoints.save(now, {}, {"loss": float(step)})
    assert sorted(checkpoint.steps_in(tmp_path)) == [1, 5, 6]
    assert checkpoint.best(tmp_path, "loss", "minimize") == 1


def test_a_folder_may_have_the_signs_of_patterns_in_its_name(tmp_path):
    state, folder = initial(TINY), tmp_path / "run [1] *?" / "checkpoints"
    for step in (1, 2):
        with checkpoint.Checkpoints(folder, keep=1, best=None) as checkpoints:
            checkpoints.save(state.replace(step=jnp.int32(step)), {"at": step}, None)
    assert checkpoint.steps_in(folder) == [2] and not checkpoint.damage(folder / "2")
    restored, host = checkpoint.restore(folder, 2, state)
    assert host == {"at": 2} and digest(restored.params) == digest(state.params)


# Evaluation --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_evaluation_is_the_same_for_any_batch_size_and_on_eight_devices(alone):
    here = evaluation_exactness.counts(alone)
    there = evaluation_exactness.on_devices(alone, 8)
    assert (here.pop("devices"), there.pop("devices")) == (1, 8)
    here.pop("step"), there.pop("step")
    assert len(here) == len(there) == 2 * len(evaluation_exactness.BATCH_SIZES)
    for split, examples in (("validation", 13), ("test", 11)):
        found = [v for one in (here, there) for name, v in one.items() if name.startswith(split)]
        assert {(v["count"], v["examples"]) for v in found} == {(examples, examples)}
        assert len({v["correct"] for v in found}) == 1
        losses = [v["loss"] for v in found]
        assert max(losses) == pytest.approx(min(losses), rel=1e-5)


def test_evaluation_agrees_with_numpy(alone):
    experiment, state, _ = last_checkpoint(alone)
    dataset = experiment.data.load()
    model = experiment.task.bind(experiment.model, dataset)
    split = dataset.splits["test"]
    outcome = evaluator.Evaluator(experiment, model, data_mesh())(state.variables(), split)
    assert outcome is not None
    sums, logits = outcome
    plain = model.apply(state.variables(), jnp.asarray(split.images) / 255, train=False)
    assert np.allclose(logits, plain, atol=1e-5)
    labels = split.labels["label"]
    assert sums["accuracy"] == ((plain.argmax(axis=1) == labels).sum(), 11)
    logs = jax.nn.log_softmax(plain)[np.arange(len(labels)), labels]
    lost = -float(logs.sum())
    assert sums["loss"][0] == pytest.approx(lost, rel=1e-5)


# Precision and dispatch --------------------------------------------------------------------------


def test_a_bfloat16_model_trains(tmp_path):
    half = dataclasses.replace(
        rated(name="sgd", learning_rate=0.05),
        model=TINY.model.clone(dtype="bfloat16", dropout=0.0),
        augmentation=Augmentation(),
        epochs=40,
        eval_every_epochs=40,
    )
    run(half, tmp_path)
    losses = [row["loss"] for row in rows_of(tmp_path, "train")]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    leaves = jax.tree.leaves(state_of(tmp_path).params)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_several_steps_in_a_dispatch_give_the_same_and_resume_exactly(tmp_path):
    config = tiny(
        model=MLP(dense=(8,), dropout=0.2),
        optimizer=Optimizer(name="sgd", learning_rate=0.05),
        eval_every_epochs=2,
    )
    run(config, tmp_path / "one by one")
    formulation = dataclasses.replace(ops.current_formulation(), steps_per_dispatch=4)
    with ops.use_formulation(formulation):
        run(config, tmp_path / "at once")
        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, 2, lambda: signal.raise_signal(signal.SIGTERM))
            # Steps 1 to 4 are one dispatch, so the first place to stop is after the fourth.
            with pytest.raises(Interrupted, match="step 4 is saved"):
                run(config, tmp_path / "interrupted")
        run(config, tmp_path / "interrupted")
    assert_same_run(tmp_path / "interrupted", tmp_path / "at once")
    apart = jax.tree.map(
        lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()),
        state_of(tmp_path / "one by one").params,
        state_of(tmp_path / "at once").params,
    )
    assert max(jax.tree.leaves(apart)) < 1e-5


# Golden numbers ----------------------------------------------------------------------------------

FIRST_LOSSES = [2.56263, 2.54985, 2.29175, 2.23369]
"""Of the first steps of digits_cnn, as measured on a CPU. Other processors round differently."""


def test_first_losses_of_digits_cnn(tmp_path):
    digits = lookup("digits_cnn").experiment()
    examples = len(digits.data.load().splits["train"])
    short = dataclasses.replace(digits, epochs=4 * 64 / examples, log_every_steps=1)
    run(short, tmp_path)
    losses = [row["loss"] for row in rows_of(tmp_path, "train")]
    assert losses == pytest.approx(FIRST_LOSSES, rel=2e-3), (
        f"the first losses of digits_cnn are {losses}: where initialisation, batch order, the "
        "model or the optimizer was meant to change, write them into FIRST_LOSSES; otherwise "
        "something of these changed unnoticed"
    )
