"""Every number of a config has a range, which is checked before anything is read."""

import dataclasses
import math
import re
from typing import Annotated

import pytest
from flax import linen as nn

from cnn_research.cli.run import run
from cnn_research.core.config import flatten, with_fields
from cnn_research.core.errors import UsageError
from cnn_research.core.experiment import Experiment, registry
from cnn_research.core.ranges import Fraction, Range, check_ranges
from cnn_research.train.config import Evaluation, Selection, Training
from cnn_research.train.optimizers import Optimizer, Penalty
from cnn_research.train.transfer import Transfer


class Network(nn.Module):
    dropout: Annotated[float, Range(minimum=0, below=1)] = 0.0
    features: tuple[Annotated[int, Range(above=0)], ...] = (8, 16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study(Experiment):
    model: nn.Module = Network()
    share: Fraction | None = None
    pairs: tuple[tuple[str, float], ...] = ()


def test_ranges_of_nested_dataclasses_and_modules_name_the_flag():
    Study(share=1.0, pairs=(("a", -1.0),)).check()
    for field, value, message in (
        ("share", 1.5, "--share is 1.5: must be from 0 to 1"),
        ("model.dropout", 1.0, "--model.dropout is 1.0: must be 0 or more and below 1"),
        ("model.features", (8, 0), "--model.features is 0: must be above 0"),
        ("pairs", (("a", math.nan),), "--pairs is nan: must be a finite number"),
    ):
        experiment = Study()
        if field.startswith("model."):
            model = Network(**{field.removeprefix("model."): value})
            experiment = dataclasses.replace(experiment, model=model)
        else:
            experiment = with_fields(experiment, {field: value})
        with pytest.raises(UsageError) as error:
            experiment.check()
        assert str(error.value) == message


def test_every_number_of_a_training_has_a_range():
    """A number without one could be negative or nothing, and be found out an hour later."""
    negative_allowed = {"mean"}
    for kind in (Training, Selection, Evaluation, Optimizer, Penalty, Transfer):
        for field in dataclasses.fields(kind):
            bare = re.search(r"\b(float|int)\b", str(field.type)) and "Range" not in str(field.type)
            assert not bare or field.name in negative_allowed, f"{kind.__name__}.{field.name}"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_is_infinite_or_none(value):
    experiment = registry()["digits_cnn"].experiment()
    numbers = {
        path: number
        for path, number in flatten(experiment).items()
        if isinstance(number, float) and not path.startswith(("data.", "model."))
    }
    assert "optimizer.learning_rate" in numbers
    for path in numbers:
        flag = "--" + path.replace("_", "-")
        with pytest.raises(UsageError, match=f"{flag} is .*: must be a finite number"):
            check_ranges(with_fields(experiment, {path: value}))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused_before_data_is_read(seed, tmp_path, monkeypatch):
    experiment = registry()["digits_cnn"].experiment()
    monkeypatch.setattr(type(experiment.data), "load", lambda _: pytest.fail("data was read"))
    with pytest.raises(UsageError, match=f"--seed is {seed}: must be from 0 to 4294967295"):
        run(dataclasses.replace(experiment, seed=seed), tmp_path)


def test_every_seed_has_32_bits():
    found = 0
    for entry in registry().values():
        experiment = entry.experiment()
        for path in flatten(experiment):
            for seed in (-1, 2**32, 99_999_999_999) if path.endswith("seed") else ():
                with pytest.raises(UsageError, match="must be from 0 to 4294967295"):
                    check_ranges(with_fields(experiment, {path: seed}))
                found += 1
    assert found > len(registry())
