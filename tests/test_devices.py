"""One batch in parts, and one state in shares on several devices: the same training."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import scaling
from benchmarks.results import last_checkpoint, rows_of
from cnn_research import ops
from cnn_research.cli.run import run
from cnn_research.core.distributed import data_mesh, state_shardings
from cnn_research.core.errors import UsageError
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.models.convnet import ConvNet
from cnn_research.models.mlp import MLP
from cnn_research.tasks.classification import Classification
from cnn_research.train.config import Training
from cnn_research.train.optimizers import Optimizer, Penalty
from cnn_research.train.state import StepContext, TrainData, initial_state
from cnn_research.train.step import make_steps
from cnn_research.train.trained import bind_to_dataset

pytestmark = pytest.mark.usefixtures("no_report")

ROOT = Path(__file__).resolve().parent.parent

SMALL = Training(
    data=Synthetic(train=40, validation=13, test=11, image_shape=(6, 6, 1), classes=(4,)),
    model=ConvNet(
        features=(4,),
        padding=(1,),
        batch_norm=False,
        dense=(8,),
        dense_activation="relu",
        dropout=0.0,
    ),
    optimizer=Optimizer(name="sgd", learning_rate=0.1, momentum=0.9),
    penalty=Penalty(l2=0.1),
    epochs=4,
    batch_size=16,
    log_every_steps=1,
)


def stepped(experiment, labels, steps=3):
    """The state and the metrics after some steps on images whose labels are given."""
    dataset = experiment.data.load()
    experiment = bind_to_dataset(experiment, dataset)
    mesh = data_mesh()
    optimizer = experiment.optimizer.build(10)
    with jax.set_mesh(mesh):
        states = (initial_state(experiment, dataset.image_shape, mesh),)
        step = make_steps(StepContext(experiment, experiment.model, optimizer, 40, mesh))
        arrays = TrainData(jnp.asarray(dataset.splits["train"].images), {"label": labels})
        for _ in range(steps):
            states, metrics = step(states, arrays, (jnp.uint32(0),), 1)
    return states[0], metrics


# Parts of a batch --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_dispatch", [1, 4], ids=["unrolled", "loop"])
def test_a_batch_in_parts_is_the_batch_to_rounding(steps_per_dispatch):
    """Where labels are missing parts count differently: each weighs as much as it counts."""
    labels = jnp.asarray(np.where(np.arange(40) % 3, np.arange(40) % 4, -1), jnp.int32)
    smooth = dataclasses.replace(SMALL, task=Classification(label_smoothing=0.1))
    how = dataclasses.replace(ops.current_formulation(), steps_per_dispatch=steps_per_dispatch)
    with ops.use_formulation(how):
        whole, metrics = stepped(smooth, labels)
        parted, in_parts = stepped(dataclasses.replace(smooth, accumulate=4), labels)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert metrics.keys() == in_parts.keys() == {"loss", "accuracy", "penalty", "objective"}
    for name, pairs in metrics.items():
        np.testing.assert_allclose(pairs, in_parts[name], rtol=1e-5)


def test_parts_draw_their_own_dropout_and_batch_norm_sees_a_part():
    labels = jnp.arange(40, dtype=jnp.int32) % 4
    normed = SMALL.model.clone(batch_norm=True, dropout=0.5)
    whole, parted = (
        stepped(dataclasses.replace(SMALL, model=normed, accumulate=n), labels, steps=1)[0]
        for n in (1, 2)
    )
    # Two parts move the running statistics twice.
    means = [jax.tree.leaves(state.model_state)[0] for state in (whole, parted)]
    ratio = np.abs(means[1]).sum() / np.abs(means[0]).sum()
    assert 1.5 < ratio < 2


def test_parts_that_do_not_divide_a_batch_are_refused():
    with pytest.raises(UsageError, match="--accumulate is 3, which does not divide"):
        dataclasses.replace(SMALL, accumulate=3).check()


# Shares of a state -------------------------------------------------------------------------------

WIDE = dataclasses.replace(
    SMALL,
    model=MLP(dense=(512, 40)),
    optimizer=Optimizer(name="sgd", learning_rate=0.1, momentum=0.9, ema_decay=0.9),
)

IN_SHARES = """
import dataclasses, json, sys
import jax, numpy as np
from cnn_research.train import job
from cnn_research.core.config import from_dict
from cnn_research.cli.run import run

shares = []
original = job.make_steps

def make_steps(*arguments):
    (where,) = arguments[-1]
    shares.append({
        str(jax.tree_util.keystr(path)): repr(sharding.spec).replace('PartitionSpec', 'P')
        for path, sharding in jax.tree_util.tree_leaves_with_path(where)
        if not sharding.is_fully_replicated
    })
    return original(*arguments)

job.make_steps = make_steps
experiment = from_dict(json.loads(sys.argv[1]))
run(experiment, sys.argv[2])
print(json.dumps({"devices": jax.device_count(), "shares": shares[0]}))
"""


def on_eight_devices(experiment, workdir):
    """Runs it in a process with eight devices; which arrays of the state were in shares."""
    from cnn_research.core.config import canonical_json

    ended = subprocess.run(
        [sys.executable, "-c", IN_SHARES, canonical_json(experiment), str(workdir)],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
def test_parameters_in_shares_train_the_same_and_go_on_anywhere(tmp_path):
    """Half of a run on eight devices with shares, the rest on one without; against one device."""
    half = dataclasses.replace(WIDE, epochs=2, shard_parameters=True)
    said = on_eight_devices(half, tmp_path / "shares")
    assert said["devices"] == 8
    kernel = "['Dense_1']['kernel']"
    assert {name for name in said["shares"] if name.endswith(kernel)} == {
        f".params{kernel}",
        f".ema['params']{kernel}",
        *(name for name in said["shares"] if ".trace" in name and name.endswith(kernel)),
    }
    # Of 36 by 512 and of 512 by 40, along the 512.
    assert set(said["shares"].values()) == {"P(None, 'data')", "P('data',)"}
    run(WIDE, tmp_path / "shares")
    run(WIDE, tmp_path / "one")
    there, here = (last_checkpoint(tmp_path / name)[1] for name in ("shares", "one"))
    for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(here), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    accuracies = [
        [row["accuracy"] for row in rows_of(tmp_path / name, "validation")]
        for name in ("shares", "one")
    ]
    assert accuracies[0] == accuracies[1]


def test_what_is_divided_follows_from_shapes_alone():
    mesh = jax.sharding.AbstractMesh((4,), ("data",))
    shapes = {"wide": (64, 512), "tall": (4096, 9), "odd": (255, 255), "small": (64, 64)}
    arrays = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    found = {name: each.spec for name, each in state_shardings(mesh, arrays, sharded=True).items()}
    whole = jax.sharding.PartitionSpec()
    assert found == {
        "wide": jax.sharding.PartitionSpec(None, "data"),
        "tall": jax.sharding.PartitionSpec("data"),
        "odd": whole,
        "small": whole,
    }
    assert {each.spec for each in state_shardings(mesh, arrays, sharded=False).values()} == {whole}


# What devices send -------------------------------------------------------------------------------


def test_bytes_of_collectives_are_read_from_a_program():
    program = """
  %a = (f32[3,4]{1,0}, bf16[5]{0}) all-reduce(%x, %y), replica_groups={{0,1}}, to_apply=%sum
  %b = f32[] all-reduce-start(%z), channel_id=2
  %c = f32[8,2]{1,0} all-gather(%a), dimensions={0}, metadata={op_name="jit(f)/all-reduce"}
  ROOT %d = f32[8,2]{1,0} add(%b, %c)
"""
    assert scaling.collective_bytes(program) == {"all-reduce": 48 + 10 + 4, "all-gather": 64}


def test_a_ring_sends_as_much_in_two_halves():
    assert scaling.all_reduce_bytes(100, 1) == 0
    assert scaling.all_reduce_bytes(100, 4) == 150
    assert scaling.all_gather_bytes(100, 4) == 75
    one, many = (scaling.Step.of(10**6, 10**9, 1000, devices, 8) for devices in (1, 64))
    assert one.compute == many.compute == pytest.approx(8 * 3e9 / 100e12)
    assert one.sending == 0 < many.sending and many.least <= many.most


@pytest.mark.slow
def test_compiled_steps_send_what_the_model_says():
    for way, figures in scaling.on_virtual_devices("lenet5").items():
        assert scaling.compared(figures) < scaling.TOLERANCE, (way, figures)
