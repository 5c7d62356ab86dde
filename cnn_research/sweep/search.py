"""A search for good values: Optuna proposes, and one process asks it, tells it and keeps its past.

`trials.jsonl` is the study: a row when a trial is begun, and one when it is over. It is written by
the sweep alone, and read when the same search goes on.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnn_research.core.config import from_dict
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import lookup
from cnn_research.core.metrics import best
from cnn_research.core.metrics_log import METRICS_FILE, read_metrics, read_rows
from cnn_research.sweep import states
from cnn_research.sweep.definition import TRIALS, Run, Sweep, override, planned
from cnn_research.sweep.states import State
from cnn_research.train.config import Training

_RANGE = re.compile(r"(?P<low>[^.\s][^\s]*?)\.\.(?P<high>\S+)(?P<log>\s+log)?")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included: whole ones where both ends are."""

    low: float
    high: float
    log: bool

    @property
    def ends(self) -> tuple[float, ...]:
        return (self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Choices:
    """One of several values."""

    ends: tuple[str, ...]


def space(search: Mapping[str, str]) -> dict[str, Range | Choices]:
    """What a search chooses from, by the path of its field.

    Raises:
        UsageError: a text is neither a range nor a list.
    """
    found: dict[str, Range | Choices] = {}
    for path, text in search.items():
        if ".." not in text:
            values = tuple(value.strip() for value in text.split(","))
            if len(set(values)) < 2 or "" in values:
                raise UsageError(
                    f"--search {path} is '{text}': give a range as 1e-4..1e-2, with ' log' after "
                    "it or not, or values as adam,sgd"
                )
            found[path] = Choices(values)
            continue
        match = _RANGE.fullmatch(text.strip())
        try:
            assert match is not None
            ends = [match["low"], match["high"]]
            whole = all(re.fullmatch(r"[+-]?\d+", end) for end in ends)
            low, high = (int(end) if whole else float(end) for end in ends)
            log = bool(match["log"])
            assert -math.inf < low < high < math.inf and (low > 0 or not log)
        except (AssertionError, ValueError):
            raise UsageError(
                f"--search {path} is '{text}': a range goes from a lower to a higher number, as "
                "1e-4..1e-2; a logarithmic one, as '1e-4..1e-2 log', begins above 0"
            ) from None
        found[path] = Range(low, high, log)
    return found


class Search:
    """The runs that Optuna proposes: TPE, and a run is given up where half did better by then.

    With one worker the runs are a function of the sweep, also where it was stopped and went on.
    """

    def __init__(self, sweep: Sweep, folder: Path):
        """Checks the ends of all ranges; reads and writes nothing.

        Raises:
            UsageError: no training, or values that its experiment refuses.
            UserError: Optuna is not installed.
        """
        self._sweep, self._folder = sweep, folder
        self._default = lookup(sweep.experiments[0]).experiment()
        self._space = space(sweep.search)
        first = {path: values.ends[0] for path, values in self._space.items()}
        for path, values in self._space.items():
            for end in values.ends:
                run = self._run(0, {**first, path: end})
        training = from_dict(json.loads(run.config))
        if not isinstance(training, Training):
            raise UsageError(f"{sweep.experiments[0]} is no training: a search needs its figures")
        self._selection = training.selection
        try:
            import optuna
        except ImportError:
            raise UserError(
                "a search needs Optuna, which is not installed: pip install 'cnn-research[search]'"
            ) from None
        self._optuna = optuna
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._direction = training.direction
        self._study = optuna.create_study(
            direction=self._direction, pruner=optuna.pruners.MedianPruner()
        )
        self._distributions = {
            path: self._distribution(values) for path, values in self._space.items()
        }
        self._trials: dict[Path, Any] = {}
        self._number: dict[Path, int] = {}
        self._seen: dict[Path, tuple[int, list[float]]] = {}
        self._unfinished: list[tuple[int, dict[str, Any]]] = []
        self._begun = 0

    def go_on(self) -> None:
        """Tells Optuna what was tried before; trials that are not over, or failed, come first.

        For the process that holds the folder.

        Raises:
            UserError: the file of trials is damaged; a last line cut short is left out, and said.
        """
        file = self._folder / TRIALS
        rows = read_rows(file, "number")
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if file.exists() and file.read_text() != text:
            print(f"{file}: its last line was cut short, and is left out", file=sys.stderr)
            temporary = file.with_suffix(".tmp")
            temporary.write_text(text)
            os.replace(temporary, file)
        begun = {row["number"]: row["params"] for row in rows if "params" in row}
        over = {row["number"]: row for row in rows if row.get("state", "FAIL") != "FAIL"}
        self._begun = len(begun)
        for number, row in over.items():
            self._study.add_trial(
                self._optuna.trial.create_trial(
                    state=self._optuna.trial.TrialState[row["state"]],
                    params=begun[number],
                    distributions=self._distributions,
                    value=row["value"] if row["state"] == "COMPLETE" else None,
                    intermediate_values={
                        index + 1: value for index, value in enumerate(row["validation"])
                    },
                )
            )
        self._unfinished = [(n, params) for n, params in begun.items() if n not in over]

    # What a feed of runs does.

    def next(self) -> Run | None:
        if self._unfinished:
            number, params = self._unfinished.pop(0)
            self._study.enqueue_trial(params)
        elif self._begun < self._sweep.trials:
            number, params = self._begun, {}
            self._begun += 1
        else:
            return None
        # Anew for each, so that what is proposed does not depend on where a search was stopped.
        self._study.sampler = self._optuna.samplers.TPESampler(seed=number, constant_liar=True)
        trial = self._study.ask(self._distributions)
        run = self._run(number, trial.params)
        if not params:
            self._append({"number": number, "name": run.name, "params": trial.params})
        self._trials[run.workdir], self._number[run.workdir] = trial, number
        return run

    def hopeless(self, run: Run) -> bool:
        trial = self._trials[run.workdir]
        self._report(run)
        return bool(trial.should_prune())

    def over(self, run: Run, state: State, *, gave_up: bool) -> State:
        trial, number = self._trials[run.workdir], self._number[run.workdir]
        values = self._report(run)
        if state.state == "complete" and not values:
            message = "no validation figures to search by: set --data.validation above 0"
            state = states.ended(run.workdir, state, "failed", message, 1)
        if state.state == "stopped" and gave_up:
            state = states.ended(run.workdir, state, "pruned", "half did better by then")
        if state.state == "stopped":
            return state
        outcome, value = "FAIL", None
        if state.state in states.ENDED:
            outcome = "COMPLETE" if state.state == "complete" else "PRUNED"
            value = self._value(values)
        told = self._optuna.trial.TrialState[outcome]
        self._study.tell(trial, value if outcome == "COMPLETE" else None, state=told)
        self._append({"number": number, "state": outcome, "value": value, "validation": values})
        return state

    def best(self) -> str:
        """The best run so far, in a line; "" where none is complete."""
        complete = self._study.get_trials(
            deepcopy=False, states=[self._optuna.trial.TrialState.COMPLETE]
        )
        if not complete:
            return ""
        best = self._study.best_trial
        words = " ".join(word for path, v in best.params.items() for word in self._words(path, v))
        return f"Best: validation {self._selection.metric} {best.value:.4f} with {words}"

    @property
    def finished(self) -> int:
        """How many trials are over, and did not fail."""
        return self._begun - len(self._unfinished)

    # Between Optuna and runs.

    def _words(self, path: str, value: Any) -> list[str]:
        return override(self._default, path, str(value))

    def _run(self, number: int, params: Mapping[str, Any]) -> Run:
        words = [word for path, value in params.items() for word in self._words(path, value)]
        return planned(
            self._default, [*self._sweep.words, *words], self._folder, (), f"trial-{number:04}"
        )

    def _distribution(self, values: Range | Choices) -> Any:
        kinds = self._optuna.distributions
        if isinstance(values, Choices):
            return kinds.CategoricalDistribution(values.ends)
        if isinstance(values.low, int) and isinstance(values.high, int):
            return kinds.IntDistribution(values.low, values.high, log=values.log)
        return kinds.FloatDistribution(values.low, values.high, log=values.log)

    def _report(self, run: Run) -> list[float]:
        """Tells Optuna what a run has measured since; all its validation figures."""
        file = run.workdir / METRICS_FILE
        changed = file.stat().st_mtime_ns if file.exists() else 0
        before, told = self._seen.get(run.workdir, (0, []))
        if changed == before:
            return told
        rows = [row for row in read_metrics(run.workdir) if row.get("split") == "validation"]
        values = [float(row[self._selection.metric]) for row in rows]
        for index in range(len(told), len(values)):
            self._trials[run.workdir].report(values[index], index + 1)
        self._seen[run.workdir] = (changed, values)
        return values

    def _value(self, values: list[float]) -> float:
        """What a run's report is about: its last state, or its best."""
        if self._selection.report == "last":
            return values[-1]
        return best(values, self._direction)

    def _append(self, row: Mapping[str, Any]) -> None:
        with (self._folder / TRIALS).open("a") as file:
            file.write(json.dumps(row) + "\n")
