"""Several seeds in one program are the runs that they would be one after the other."""

from __future__ import annotations

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest

from benchmarks.results import digest, last_checkpoint, rows_of
from cnn_research import ops
from cnn_research.cli.run import run
from cnn_research.core.errors import Interrupted, UsageError
from cnn_research.data.augmentation.config import Augmentation
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.models.convnet import ConvNet
from cnn_research.train import checkpoint
from cnn_research.train.config import Selection, Training
from cnn_research.train.optimizers import Optimizer
from cnn_research.train.step_metrics import StepMetrics
from cnn_research.train.trained import TrainedModel
from cnn_research.train.transfer import Transfer
from cnn_research.workflows.replicas import means

pytestmark = pytest.mark.usefixtures("no_report")

SEVERAL = Training(
    data=Synthetic(train=40, validation=13, test=11, image_shape=(6, 6, 1), classes=(4,)),
    model=ConvNet(features=(4,), padding=(1,), dense=(8,), dense_activation="relu", dropout=0.2),
    optimizer=Optimizer(name="sgd", learning_rate=0.05, ema_decay=0.9),
    augmentation=Augmentation(mirror=True, shift=1),
    epochs=4,
    batch_size=16,
    log_every_steps=2,
    seed=3,
    selection=Selection(report="best"),
)
SEEDS = (3, 4)


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_by_one")
    for seed in SEEDS:
        run(dataclasses.replace(SEVERAL, seed=seed), folder / f"seed-{seed}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("vmapped", [False, True], ids=["in turn", "vmapped"])
def test_replicas_are_the_runs_of_their_seeds(vmapped, one_by_one, tmp_path, capsys):
    how = dataclasses.replace(
        ops.current_formulation(), vmapped_replicas=vmapped, steps_per_dispatch=1 + vmapped
    )
    with ops.use_formulation(how):
        result = run(SEVERAL, tmp_path, replicas=2)
    for seed in SEEDS:
        ours, theirs = tmp_path / f"seed-{seed}", one_by_one / f"seed-{seed}"
        for name in ("config.json", "resolved_config.json"):
            assert (ours / name).read_text() == (theirs / name).read_text()
        states = [last_checkpoint(workdir)[1] for workdir in (ours, theirs)]
        for a, b in zip(*map(jax.tree.leaves, states), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        # Training rows end where dispatches do.
        for split in ("validation",) if vmapped else ("train", "validation"):
            rows = [rows_of(workdir, split) for workdir in (ours, theirs)]
            for a, b in zip(*rows, strict=True):
                assert (a["step"], a.get("count")) == (b["step"], b.get("count"))
                assert a["accuracy"] == b["accuracy"]
                assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert TrainedModel.load(ours).experiment.seed == seed
    figures = [
        json.loads((tmp_path / f"seed-{seed}" / "evaluation.json").read_text())["test"]["accuracy"]
        for seed in SEEDS
    ]
    summary = json.loads((tmp_path / "results.json").read_text())
    assert summary["seeds"] == list(SEEDS)
    assert summary["figures"]["accuracy"]["values"] == figures
    assert summary["figures"]["accuracy"]["std"] == pytest.approx(np.std(figures, ddof=1))
    assert result.metrics["test"]["accuracy"] == pytest.approx(np.mean(figures))
    assert f"{np.mean(figures):.4f} ± {np.std(figures, ddof=1):.4f}" in capsys.readouterr().out


@pytest.mark.slow
def test_replicas_go_on_together_from_the_newest_checkpoint_of_all(one_by_one, tmp_path):
    """Stopped by a signal, and then one's newest checkpoint gone, as if killed while saving."""
    original, left = StepMetrics.add, [7]

    def add(window, now, metrics):
        original(window, now, metrics)
        if left and now >= left[0]:
            left.clear()
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepMetrics, "add", add)
        with pytest.raises(Interrupted, match="step 7 is saved"):
            run(SEVERAL, tmp_path, replicas=2)
    saved = [tmp_path / f"seed-{seed}" / "checkpoints" for seed in SEEDS]
    assert [checkpoint.newest(folder) for folder in saved] == [7, 7]
    (saved[1] / "7" / "checksums.json").unlink()
    run(SEVERAL, tmp_path, replicas=2)
    for seed in SEEDS:
        workdirs = [folder / f"seed-{seed}" for folder in (tmp_path, one_by_one)]
        states = [last_checkpoint(workdir)[1] for workdir in workdirs]
        for a, b in zip(*map(jax.tree.leaves, states), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        steps = [[row["step"] for row in rows_of(workdir, "train")] for workdir in workdirs]
        assert steps[0] == sorted(set(steps[0])) and steps[0][-1] == steps[1][-1] == 10
    assert digest(last_checkpoint(tmp_path / "seed-3")[1]) != digest(
        last_checkpoint(tmp_path / "seed-4")[1]
    )
    with pytest.raises(UsageError, match=r"contains replicas with the seeds \[3, 4\]"):
        run(SEVERAL, tmp_path, replicas=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"selection": Selection(patience=1)},
        {"transfer": Transfer(fit_after="Dense_0")},
    ],
    ids=["patience", "fitted"],
)
def test_seeds_that_cannot_be_in_lockstep_are_trained_in_turn(fields, tmp_path, capsys):
    experiment = dataclasses.replace(SEVERAL, epochs=1, **fields)
    run(experiment, tmp_path, "dry-run", replicas=2)
    assert "The first of 2 trainings, which run one after the other:" in capsys.readouterr().out
    run(experiment, tmp_path, replicas=2)
    assert json.loads((tmp_path / "results.json").read_text())["seeds"] == list(SEEDS)
    digests = {digest(last_checkpoint(tmp_path / f"seed-{seed}")[1]) for seed in SEEDS}
    assert len(digests) == 2


def test_what_cannot_be_replicated_is_refused(one_by_one, tmp_path):
    last = dataclasses.replace(SEVERAL, seed=2**32 - 1)
    for count in (2, 10**11):
        with pytest.raises(UsageError, match=r"--seed is \d+: must be from 0 to 4294967295"):
            run(last, tmp_path, replicas=count)
    with pytest.raises(UsageError, match="--replicas works only with --mode=train"):
        run(SEVERAL, tmp_path, "evaluate", replicas=2)
    with pytest.raises(UsageError, match="must be 1 or more"):
        run(SEVERAL, tmp_path, replicas=0)
    with pytest.raises(UsageError, match="is the folder of a single run"):
        run(SEVERAL, one_by_one / "seed-3", replicas=2)


def test_means_are_of_the_figures_that_all_have():
    folds = [{"test": {"accuracy": 0.5, "unseen": 3, "kind": {"ECE": 0.1}}, "validation": {"x": 1}}]
    folds.append({"test": {"accuracy": 1.0, "kind": {"ECE": 0.3, "loss": 1.0}}})
    assert means(folds) == {"test": {"accuracy": 0.75, "kind": {"ECE": 0.2}}}
