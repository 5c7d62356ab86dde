"""When a training does what: evaluations, phases, and the end."""

from __future__ import annotations

import pytest

from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.models.mlp import MLP
from cnn_research.train.config import Training
from cnn_research.train.plan import Plan
from cnn_research.train.transfer import Transfer


def evaluations(plan: Plan) -> list[int]:
    steps = [plan.next_evaluation(0)]
    while steps[-1] < plan.last_step:
        steps.append(plan.next_evaluation(steps[-1]))
    return steps


# Of 40 examples in batches of 16 an epoch is 2.5 steps.
@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (1.0, [3, 5, 8, 10, 13, 15]),
        (2.0, [5, 10, 15]),
        (0.5, [2, 3, 4, 5, 7, 8, 9, 10, 12, 13, 14, 15]),
        (0.4, list(range(1, 16))),
        (0.001, list(range(1, 16))),
        (1e-9, list(range(1, 16))),
        (100.0, [15]),
    ],
)
def test_evaluations_fall_on_steps_and_never_stop_before_the_end(every, steps):
    plan = Plan(batch_size=16, examples=40, last_step=15, eval_every_epochs=every)
    assert evaluations(plan) == steps
    assert plan.evaluations_left(0) == len(steps)
    assert plan.evaluations_left(14) == 1 and plan.evaluations_left(15) == 0


def test_an_evaluation_that_was_stopped_is_still_due():
    plan = Plan(batch_size=16, examples=40, last_step=15, eval_every_epochs=1.0)
    assert [plan.evaluation_due(step, evaluated=3) for step in (3, 4, 5, 6)] == [
        *(False, False, True, True)
    ]
    assert plan.evaluation_due(15, evaluated=13) and not plan.evaluation_due(15, evaluated=15)


def test_phases_begin_where_their_epochs_do():
    plan = Plan(16, 40, 15, eval_every_epochs=1.0, phases=(0.0, 1.0, 2.0))
    assert plan.phase_at(0, due=15) == (0.0, 3)
    assert plan.phase_at(2, due=2) == (0.0, 2)
    assert plan.phase_at(3, due=15) == (1.0, 5)
    assert plan.phase_at(14, due=15) == (2.0, 15)


def test_the_plan_of_an_experiment():
    training = Training(
        data=Synthetic(train=40, image_shape=(6, 6, 1), classes=(4,)),
        model=MLP(),
        transfer=Transfer(unfreeze=(("Dense_0", 1.5),)),
        batch_size=16,
        epochs=6,
    )
    plan = Plan.of(training, training.data.load())
    assert (plan.examples, plan.last_step, plan.phases) == (40, 15, (0.0, 1.5))
    assert plan.epoch_at(5) == 2 and plan.step_at(0) == 0 and plan.step_at(2) == 5
