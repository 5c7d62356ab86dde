"""Callbacks, and an optimizer and a metric of one's own, in a run that stops and resumes."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.cli.run import run
from cnn_research.core.config import canonical_json, from_dict, parse_fields, register_config
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.metrics_log import read_metrics
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.models.mlp import MLP
from cnn_research.train import checkpoint
from cnn_research.train.callbacks import Callback
from cnn_research.train.config import Selection, Training
from cnn_research.train.optimizers import OptimizerConfig
from cnn_research.train.trained import TrainedModel
from cnn_research.train.transfer import Transfer

pytestmark = pytest.mark.usefixtures("no_report")

PAGE = Path(__file__).resolve().parent.parent / "docs" / "extending_training.md"


def code_of_the_page() -> dict:
    """The names that the page's code defines."""
    names = {"__name__": "extending_training"}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    # Without this file's `from __future__`: the page has none.
    exec(compile("\n".join(blocks), PAGE.name, "exec", dont_inherit=True), names)
    return names


OWN = code_of_the_page()
HEARD: list[tuple] = []
"""What `Recorder` was told."""
FAILING: dict[str, Exception] = {}
"""What it raises, by method."""


@register_config
@dataclasses.dataclass(frozen=True)
class Recorder(Callback):
    """Logs the squared norm of the parameters."""

    every: int = 1

    def on_start(self, view):
        self.hear("on_start", view)
        view.log({"norm": norm_of(view.state.params)})

    def on_evaluation(self, view):
        view.log({"norm": norm_of(view.state.params)})
        self.hear("on_evaluation", view)

    def on_checkpoint(self, view, folder):
        assert checkpoint.damage(folder) is None
        self.hear("on_checkpoint", view)

    def on_end(self, view, result):
        assert result.metrics["validation"]["accuracy"] == view.evaluate(VALIDATION)["accuracy"]
        self.hear("on_end", view)

    def hear(self, hook, view):
        HEARD.append((hook, view.step, round(view.epoch, 2), *sorted(view.metrics)))
        if hook in FAILING:
            raise FAILING[hook]


def norm_of(params):
    return sum((leaf**2).sum() for leaf in jax.tree.leaves(params))


@register_config
@dataclasses.dataclass(frozen=True)
class Nothing(OptimizerConfig):
    def update(self, rate):
        return None


# 24 examples in batches of 12: two steps an epoch, and an evaluation after each epoch.
TINY = Training(
    data=Synthetic(train=24, validation=6, test=6, image_shape=(4, 4, 1), classes=(3,)),
    model=MLP(dense=(5,)),
    optimizer=OWN["Lion"](learning_rate=0.01, schedule="cosine", clip_norm=1.0, weight_decay=0.1),
    task=OWN["WithTopTwo"](),
    selection=Selection(metric="top-2 accuracy"),
    transfer=Transfer(freeze=("Dense_0",), rates=(("Dense_1", 0.5),)),
    callbacks=(Recorder(),),
    epochs=3,
    batch_size=12,
    log_every_steps=1,
)
VALIDATION = TINY.data.load().splits["validation"]
METRICS = ("accuracy", "loss", "top-2 accuracy")


@pytest.fixture(autouse=True)
def silent():
    HEARD.clear()
    FAILING.clear()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run that nothing disturbed, and what the callback was told."""
    HEARD.clear()
    workdir = tmp_path_factory.mktemp("alone") / "run"
    run(TINY, workdir)
    return workdir, list(HEARD)


def rows(workdir: Path) -> list[dict]:
    """Rows of metrics.jsonl without what a clock measured."""
    return [
        {name: value for name, value in row.items() if name != "images_per_second"}
        for row in read_metrics(workdir)
    ]


def params(workdir: Path) -> list[np.ndarray]:
    return jax.tree.leaves(TrainedModel.load(workdir).host_variables)


# Callbacks ---------------------------------------------------------------------------------------


def test_a_callback_is_told_what_happens(alone):
    workdir, heard = alone
    epochs = [
        told
        for step, epoch in ((2, 1.0), (4, 2.0), (6, 3.0))
        for told in (
            ("on_evaluation", step, epoch, *METRICS),
            ("on_checkpoint", step, epoch, *METRICS),
        )
    ]
    assert heard == [("on_start", 0, 0.0), *epochs, ("on_end", 6, 3.0)]
    logged = [row for row in read_metrics(workdir) if row["split"] == "Recorder"]
    assert [(row["step"], row["epoch"]) for row in logged] == [(0, 0), (2, 1), (4, 2), (6, 3)]
    expected = norm_of(TrainedModel.load(workdir).host_variables["params"])
    assert logged[-1]["norm"] == pytest.approx(float(expected))


@pytest.mark.parametrize("hook", ["on_start", "on_evaluation", "on_checkpoint", "on_end"])
def test_a_callback_that_fails_ends_the_run_which_resumes_as_if_it_had_not(hook, alone, tmp_path):
    FAILING[hook] = KeyError("top5\nof 10")
    step = {"on_start": "0", "on_end": "6"}.get(hook, "2")
    line = rf"callback Recorder failed in {hook} at step {step}, KeyError: .*test_callbacks.py"
    with pytest.raises(UserError, match=line) as caught:
        run(TINY, tmp_path)
    assert "\n" not in str(caught.value)
    assert list(checkpoint.steps_in(tmp_path / "checkpoints")) or hook == "on_start"
    del FAILING[hook]
    run(TINY, tmp_path)
    assert rows(tmp_path) == rows(alone[0])
    for mine, expected in zip(params(tmp_path), params(alone[0]), strict=True):
        np.testing.assert_array_equal(mine, expected)


def test_a_callback_ends_the_training_for_good_unless_it_is_left_out(alone, tmp_path, capsys):
    stopping = dataclasses.replace(TINY, callbacks=(OWN["StopWhenStill"](change=9.0),))
    assert run(stopping, tmp_path).step == 4
    assert "Stopped early: Dense_1 has stopped moving." in capsys.readouterr().err
    assert run(stopping, tmp_path).step == 4
    assert run(dataclasses.replace(TINY, callbacks=()), tmp_path).step == 6
    for mine, expected in zip(params(tmp_path), params(alone[0]), strict=True):
        np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize(
    ("hook", "act"),
    [
        ("on_start", lambda self, view: view.stop("at once")),
        ("on_checkpoint", lambda self, view, folder: view.log({"norm": 0.0})),
    ],
)
def test_what_a_hook_does_not_offer_is_refused(hook, act, tmp_path, monkeypatch):
    monkeypatch.setattr(Recorder, hook, act)
    with pytest.raises(
        UserError, match="log works only in on_start and on_evaluation, stop only in"
    ):
        run(TINY, tmp_path)


def test_callbacks_are_part_of_the_config():
    assert from_dict(json.loads(canonical_json(TINY))) == TINY
    typed = parse_fields(TINY, ["--callbacks.0.every=7", "--loggers", "lines"], "launch.py")
    assert (typed.callbacks, typed.loggers) == ((Recorder(every=7),), (OWN["Lines"](),))
    with pytest.raises(
        UsageError, match=r"unknown logger 'line' \(did you mean 'lines'\?\); choose"
    ):
        parse_fields(TINY, ["--loggers", "line"], "launch.py")


# Optimizers and metrics --------------------------------------------------------------------------


def test_an_optimizer_of_ones_own_is_scheduled_masked_frozen_and_scaled(alone):
    state = TrainedModel.load(alone[0]).state
    first = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}
    tree = {"Dense_0": first, "Dense_1": first}
    gradients = jax.tree.map(lambda leaf: -jnp.ones_like(leaf), tree)
    transformation = TINY.transfer.optimizer(TINY.optimizer, 4, lambda epoch: 0)
    opt_state = transformation.init(tree)
    for step in range(2):
        updates, opt_state = transformation.update(gradients, opt_state, tree)
        rate = 0.01 * (1 + np.cos(np.pi * step / 4)) / 2
        assert not any(leaf.any() for leaf in updates["Dense_0"].values())
        assert updates["Dense_1"]["bias"] == pytest.approx(0.5 * rate)
        assert updates["Dense_1"]["kernel"] == pytest.approx(0.5 * rate * (1 - 0.1 * 3))
    assert any("mu" in str(path) for path, _ in jax.tree.leaves_with_path(state.opt_state))


def test_an_optimizer_that_is_none_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"Nothing\.update returned None: return an optax"):
        run(dataclasses.replace(TINY, optimizer=Nothing()), tmp_path)


def test_a_metric_of_ones_own_is_measured_everywhere(alone):
    evaluation = json.loads((alone[0] / "evaluation.json").read_text())
    validated = [row for row in read_metrics(alone[0]) if row["split"] == "validation"]
    name = "top-2 accuracy"
    assert evaluation["validation"][name] == validated[-1][name]
    assert evaluation["test"]["accuracy"] <= evaluation["test"][name] <= 1
    assert evaluation["metric_directions"][name] == "maximize"


def test_class_weights_are_not_lost_with_a_metric_of_ones_own(tmp_path):
    task = dataclasses.replace(TINY.task, class_weights="balanced")
    with pytest.raises(UsageError, match=r"override WithTopTwo\.fitted"):
        run(dataclasses.replace(TINY, task=task), tmp_path)
