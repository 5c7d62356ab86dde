"""Tasks: what a model's outputs mean, what is lost when they are wrong, and what is reported."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight

from cnn_research.cli.run import run
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.ranges import check_ranges
from cnn_research.data.dataset import MISSING, UNKNOWN_CLASS, Dataset, Split
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.models.mlp import MLP
from cnn_research.report.pictures import Shown
from cnn_research.tasks.class_predictions import ClassPredictions
from cnn_research.tasks.classification import Classification
from cnn_research.tasks.multi_head import FittedMultiHead, MultiHead
from cnn_research.train.config import Training

# The loss ----------------------------------------------------------------------------------------

LOGITS = jnp.asarray([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0], [1.0, -2.0, 0.0], [0.0, 0.0, 9.0]])
PRESENT = jnp.asarray([1.0, 1.0, 1.0, 0.0])


def by_hand(logits, target):
    """-sum(target * log softmax), in double precision."""
    logits = np.asarray(logits, np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -(np.asarray(target) * logs).sum(axis=-1)


def test_loss_and_accuracy_by_hand():
    labels = {"label": jnp.asarray([0, 1, 2, 2])}
    sums = Classification().sums(LOGITS, labels, PRESENT)
    expected = by_hand(LOGITS[:3], np.eye(3)[[0, 1, 2]]).sum()
    assert float(sums["loss"][0]) == pytest.approx(expected, rel=1e-6)
    assert (float(sums["accuracy"][0]), float(sums["accuracy"][1])) == (1, 3)


def test_label_smoothing_by_hand():
    labels = {"label": jnp.asarray([0, 1, 2, 2])}
    total, count = Classification(label_smoothing=0.3).training_loss(LOGITS, labels, PRESENT)[
        "loss"
    ]
    target = 0.7 * np.eye(3)[[0, 1, 2]] + 0.1
    assert float(total) == pytest.approx(by_hand(LOGITS[:3], target).sum(), rel=1e-6)
    assert float(count) == 3
    plain = Classification(label_smoothing=0.3).sums(LOGITS, labels, PRESENT)["loss"][0]
    expected = by_hand(LOGITS[:3], np.eye(3)[[0, 1, 2]]).sum()
    assert float(plain) == pytest.approx(expected, rel=1e-6), "smoothing is of the objective only"


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_missing_labels_have_no_loss_and_are_not_counted(smoothing):
    task = Classification(label_smoothing=smoothing)
    some = {"label": jnp.asarray([0, -1, 2, -1])}
    kept = jnp.asarray([0, 2])
    known = {"label": some["label"][kept]}
    for function in (task.training_loss, task.sums):
        total, count = function(LOGITS, some, jnp.ones(4))["loss"]
        expected, two = function(LOGITS[kept], known, jnp.ones(2))["loss"]
        assert float(total) == pytest.approx(float(expected), rel=1e-6)
        assert float(count) == float(two) == 2
    assert float(task.sums(LOGITS, some, jnp.ones(4))["accuracy"][1]) == 2
    gradient = jax.grad(lambda x: task.training_loss(x, some, jnp.ones(4))["loss"][0])(LOGITS)
    assert (gradient[1] == 0).all()
    assert (gradient[0] != 0).all()


# Labels that training has not seen ---------------------------------------------------------------


def test_an_unseen_label_is_a_wrong_answer_without_a_loss():
    labels = {"label": jnp.asarray([0, UNKNOWN_CLASS, MISSING, UNKNOWN_CLASS])}
    sums = Classification().sums(LOGITS, labels, jnp.ones(4))
    assert float(sums["loss"][0]) == pytest.approx(by_hand(LOGITS[0], [1, 0, 0]), rel=1e-6)
    assert float(sums["loss"][1]) == 1
    assert [float(x) for x in sums["accuracy"]] == [1, 3]
    gradient = jax.grad(
        lambda x: Classification().training_loss(x, labels, jnp.ones(4))["loss"][0]
    )(LOGITS)
    assert (gradient[1:] == 0).all()
    assert (gradient[0] != 0).all()


def test_figures_tell_seen_labels_from_the_others():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 2, 0, 1]]
    labels = np.array([0, 1, UNKNOWN_CLASS, 2, MISSING, 2], np.int32)
    names = ("a", "b", "c")
    made = ClassPredictions("target", logits, labels, names, loss=0.5)
    figures = made.metrics()
    assert (figures["correct"], figures["count"], figures["unseen"]) == (3, 5, 1)
    assert figures["accuracy"] == 3 / 5
    assert figures["accuracy of seen labels"] == 3 / 4
    assert "(unseen)" in made.text()
    assert made.confusion_counts().sum() == 4
    # A class may have an output and yet no training example.
    counts = np.array([3, 1, 0])
    never = dataclasses.replace(made, training_counts=counts).metrics()
    assert never["unseen"] == 3
    assert never["accuracy of seen labels"] == 1
    assert never["accuracy"] == 3 / 5
    everything = ClassPredictions("test", logits[:2], labels[:2], names, loss=0.5).metrics()
    assert not {"unseen", "accuracy of seen labels"} & everything.keys()


def test_page_with_unseen_labels_says_so_and_names_them(tmp_path):
    logits = np.eye(2, dtype=np.float32)[[0, 1, 1]]
    labels = np.array([0, UNKNOWN_CLASS, 0], np.int32)
    made = ClassPredictions("target", logits, labels, ("a", "b"), loss=0.5)
    page = "\n".join(made.page(tmp_path, "", Shown(np.zeros((3, 4, 4, 3), np.uint8))))
    assert "1 of 3 labels are of classes without training examples" in page
    assert {file.name for file in tmp_path.iterdir()} == {
        *("classification_report.txt", "confusion_matrix.png", "confusion_matrix.csv"),
        *("confusions.png", "label_ranking.csv", "mistakes.png", "mistakes", "reliability.png"),
    }


# What a class weighs -----------------------------------------------------------------------------


def labelled(*labels: int, classes: int = 3) -> Dataset:
    split = Split(np.zeros((len(labels), 4, 4, 3), np.uint8), {"label": np.array(labels, np.int32)})
    names = {"label": tuple("abcdef"[:classes])}
    return Dataset("some", {"train": split, "test": split}, names, {})


def test_balanced_weights_are_scikit_learns():
    labels = [0] * 6 + [1] * 3 + [2]
    task = Classification(class_weights="balanced").fitted(labelled(*labels, MISSING))
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(task.weights, expected)
    # Every class then has the same say in the objective, whatever its number of examples.
    logits = jnp.zeros((10, 3))
    share = jax.grad(
        lambda x: task.training_loss(x, {"label": jnp.asarray(labels)}, jnp.ones(10))["loss"][0]
    )(logits)
    says = [float(jnp.abs(share[np.array(labels) == c, c]).sum()) for c in range(3)]
    np.testing.assert_allclose(says, says[0], rtol=1e-5)
    plain = Classification().sums(logits, {"label": jnp.asarray(labels)}, jnp.ones(10))
    weighted = task.sums(logits, {"label": jnp.asarray(labels)}, jnp.ones(10))
    assert float(plain["loss"][0]) == float(weighted["loss"][0]), "metrics are not weighted"


def test_a_class_without_training_examples_weighs_something_finite():
    task = Classification(class_weights="balanced").fitted(labelled(0, 0, 1))
    assert all(math.isfinite(weight) for weight in task.weights)


def test_logit_adjustment_favours_rare_classes_by_their_shares():
    """At 1, where shares are all there is to know, the best logits say that all are as common."""
    labels = [0] * 6 + [1] * 3 + [2]
    task = Classification(logit_adjustment=1.0).fitted(labelled(*labels, MISSING))
    known, weights = {"label": jnp.asarray(labels)}, jnp.ones(10)

    def loss(logits):
        return task.training_loss(jnp.tile(logits, (10, 1)), known, weights)["loss"][0]

    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(3)), 0, atol=1e-5)
    assert float(jnp.abs(jax.grad(loss)(jnp.log(jnp.array([0.6, 0.3, 0.1])))).max()) > 1
    plain = Classification().sums(jnp.zeros((10, 3)), known, weights)
    adjusted = task.sums(jnp.zeros((10, 3)), known, weights)
    assert float(plain["loss"][0]) == float(adjusted["loss"][0]), "metrics are not adjusted"


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Classification(logit_adjustment=-1.0), "--task.logit-adjustment is -1.0: must be 0 or"),
        (MultiHead(logit_adjustment=math.inf), "--task.logit-adjustment is inf: must be a finite"),
        (MultiHead(label_smoothing=1.0), "--task.label-smoothing is 1.0: must be 0 or more and"),
        (MultiHead(label=("a",), loss_weights=(-1.0,)), "--task.loss-weights is -1.0: must be 0"),
    ],
)
def test_a_field_out_of_range_is_refused(task, message):
    with pytest.raises(UsageError, match=message):
        check_ranges(task, "task.")


# Several heads -----------------------------------------------------------------------------------


def two_heads(**fields) -> tuple[Dataset, FittedMultiHead]:
    data = Synthetic(train=8, test=8, heads=("kind", "brand"), classes=(3, 4)).load()
    return data, MultiHead(**fields).fitted(data)


def test_heads_share_one_layer_of_outputs():
    data, task = two_heads()
    assert task.heads == ("kind", "brand")
    assert MultiHead().num_outputs(data) == 7
    outputs = jax.random.normal(jax.random.key(0), (5, 7))
    kind, brand = task.split(outputs)
    np.testing.assert_array_equal(jnp.concatenate([kind, brand], axis=1), outputs)
    assert kind.shape == (5, 3)


def test_loss_of_several_heads_by_hand():
    _, task = two_heads(loss_weights=(1.0, 0.5), label=("kind", "brand"))
    outputs = jax.random.normal(jax.random.key(0), (3, 7))
    labels = {"kind": jnp.asarray([0, 2, MISSING]), "brand": jnp.asarray([MISSING, 1, MISSING])}
    kinds = by_hand(outputs[:2, :3], np.eye(3)[[0, 2]]).mean()
    brands = by_hand(outputs[1, 3:], np.eye(4)[1])
    terms = task.training_loss(outputs, labels, jnp.ones(3))
    total = task.combine_losses({name: s / c for name, (s, c) in terms.items()})
    assert float(total) == pytest.approx(kinds + 0.5 * brands, rel=1e-5)
    sums = task.sums(outputs, labels, jnp.ones(3))
    means = task.means({name: (float(s), float(c)) for name, (s, c) in sums.items()})
    assert means["loss"] == pytest.approx(kinds + 0.5 * brands, rel=1e-5)
    right = [float(outputs[0, :3].argmax() == 0), float(outputs[1, :3].argmax() == 2)]
    assert means["kind accuracy"] == np.mean(right)
    brand = float(outputs[1, 3:].argmax() == 1)
    assert means["accuracy"] == pytest.approx((np.mean(right) + brand) / 2)


def test_a_head_without_labels_counts_for_nothing():
    _, task = two_heads()
    labels = {"kind": jnp.asarray([0, 2]), "brand": jnp.asarray([MISSING, MISSING])}
    sums = task.sums(jnp.zeros((2, 7)), labels, jnp.ones(2))
    means = task.means({name: (float(s), float(c)) for name, (s, c) in sums.items()})
    assert means["loss"] == means["kind loss"]
    assert means["accuracy"] == means["kind accuracy"]
    assert math.isnan(means["brand accuracy"])


def test_figures_of_several_heads_and_their_mean():
    data, task = two_heads()
    outputs = np.random.default_rng(0).normal(size=(8, 7)).astype(np.float32)
    made = task.predictions(data, "test", outputs, {"kind loss": 1.0, "brand loss": 0.5})
    figures = task.combine_metrics(made)
    expected = {
        head: metrics.accuracy_score(data.splits["test"].labels[head], part.argmax(axis=1))
        for head, part in zip(task.heads, task.split(outputs), strict=True)
    }
    assert {head: figures[head]["accuracy"] for head in expected} == expected
    assert figures["accuracy"] == pytest.approx(np.mean(list(expected.values())))
    assert figures["loss"] == 1.5


def test_views_are_averaged_head_by_head():
    _, task = two_heads()
    views = list(jax.random.normal(jax.random.key(1), (2, 4, 7)))
    found = task.split(jnp.exp(task.average_views(views)))
    for place, part in enumerate(found):
        expected = sum(jax.nn.softmax(task.split(view)[place]) for view in views) / 2
        np.testing.assert_allclose(part, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (MultiHead(label=("a", "b"), loss_weights=(1.0,)), "loss-weights has 1 numbers"),
        (MultiHead(label=("a",), loss_weights=(0.0,)), "must be above 0"),
        (MultiHead(label=("a", "a")), "names a head twice"),
    ],
)
def test_heads_that_contradict_each_other(task, words):
    with pytest.raises(UsageError, match=words):
        task.check()


def test_a_head_that_the_data_lacks_or_with_one_class():
    data, _ = two_heads()
    words = "no labels 'colour'; it has kind, brand: choose one with --task.label"
    with pytest.raises(UserError, match=words):
        MultiHead(label=("kind", "colour")).check_data(data)
    one = dataclasses.replace(data, class_names={**data.class_names, "kind": ("x",)}, splits={})
    with pytest.raises(UserError, match="all labels 'kind' are of one class"):
        MultiHead(label=("kind",)).check_data(one)


def test_a_split_in_which_no_label_is_known():
    data, _ = two_heads()
    (name, split), *_ = data.splits.items()
    unknown = {**split.labels, "brand": np.full(len(split), -1, np.int32)}
    lacking = dataclasses.replace(
        data, splits={**data.splits, name: dataclasses.replace(split, labels=unknown)}
    )
    with pytest.raises(UserError, match=f"no image of the {name} split has a label 'brand'"):
        MultiHead().check_data(lacking)
    MultiHead(label=("kind",)).check_data(lacking)


def without_labels(data: Dataset, split: str, *heads: str) -> Dataset:
    found = data.splits[split]
    unknown = {head: np.full(len(found), MISSING, np.int32) for head in heads}
    lacking = dataclasses.replace(found, labels={**found.labels, **unknown})
    return dataclasses.replace(data, splits={**data.splits, split: lacking})


def test_a_test_split_may_lack_the_labels_of_some_heads_but_not_of_all():
    data, task = two_heads()
    some = without_labels(data, "test", "brand")
    MultiHead().check_data(some)
    outputs = np.random.default_rng(0).normal(size=(8, 7)).astype(np.float32)
    means = {"kind loss": 1.0, "brand loss": math.nan}
    made = task.predictions(some, "test", outputs, means)
    figures = task.combine_metrics(made)
    assert (figures["loss"], figures["accuracy"]) == (1.0, figures["kind"]["accuracy"])
    assert "brand" not in figures and "brand" not in task.text(made)
    with pytest.raises(UserError, match="test split has a label 'brand'"):
        Classification(head="brand").check_data(some)
    none = without_labels(data, "test", "kind", "brand")
    with pytest.raises(UserError, match="test split has a label 'kind' or 'brand'"):
        MultiHead().check_data(none)


@pytest.mark.slow
def test_several_heads_train_and_are_reported(tmp_path):
    training = Training(
        data=Synthetic(train=32, test=16, heads=("kind", "brand"), classes=(3, 4)),
        model=MLP(dense=(8,)),
        task=MultiHead(class_weights="balanced"),
        epochs=1,
        batch_size=8,
        log_every_steps=2,
    )
    result = run(training, tmp_path)
    figures = result.metrics["test"]
    assert figures["accuracy"] == pytest.approx(
        (figures["kind"]["accuracy"] + figures["brand"]["accuracy"]) / 2
    )
    page = (tmp_path / "report" / "report.md").read_text()
    assert "### kind, test split" in page and "### brand, test split" in page
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"accuracy", "kind accuracy", "brand loss"} <= rows[-1].keys()
    again = run(training, tmp_path, "evaluate")
    assert again.metrics == result.metrics
