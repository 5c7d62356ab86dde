"""Hyperparameter search with Optuna, in the process of the sweep.

The study is saved in the sweep's folder as Optuna's journal.
"""

from __future__ import annotations

import json
import math
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from cnn_research.core.config import from_dict
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import lookup
from cnn_research.core.files import write_text
from cnn_research.core.metrics import best
from cnn_research.core.metrics_log import METRICS_FILE, read_metrics
from cnn_research.sweep import states
from cnn_research.sweep.definition import Run, Sweep, override, plan_run
from cnn_research.sweep.local import Feed
from cnn_research.sweep.states import State
from cnn_research.train.config import Training

STUDY = "study.jsonl"

_RANGE = re.compile(r"(?P<low>[^.\s][^\s]*?)\.\.(?P<high>\S+)(?P<log>\s+log)?")


def space(search: Mapping[str, str]) -> dict[str, BaseDistribution]:
    """Parse a search space by paths of fields; raise `UsageError` for an invalid range or list."""
    parsed: dict[str, BaseDistribution] = {}
    for path, text in search.items():
        if ".." not in text:
            values = tuple(value.strip() for value in text.split(","))
            if len(set(values)) < 2 or "" in values:
                raise UsageError(
                    f"--search {path} is '{text}': give a range such as 1e-4..1e-2 or "
                    "'1e-4..1e-2 log', or values such as adam,sgd"
                )
            parsed[path] = CategoricalDistribution(values)
            continue
        match = _RANGE.fullmatch(text.strip())
        try:
            assert match is not None
            ends, log = [match["low"], match["high"]], bool(match["log"])
            whole = all(re.fullmatch(r"[+-]?\d+", end) for end in ends)
            low, high = (int(end) if whole else float(end) for end in ends)
            assert -math.inf < low < high < math.inf and (low > 0 or not log)
            kind: Any = IntDistribution if whole else FloatDistribution
            parsed[path] = kind(low, high, log=log)
        except (AssertionError, ValueError):
            raise UsageError(
                f"--search {path} is '{text}': give the lower end first, as in 1e-4..1e-2; a "
                "logarithmic range, such as '1e-4..1e-2 log', must start above 0"
            ) from None
    return parsed


def _ends(values: Any) -> tuple[Any, ...]:
    """Return the values that are checked before a search: the ends of a range, or all choices."""
    listed = isinstance(values, CategoricalDistribution)
    return values.choices if listed else (values.low, values.high)


class Search(Feed):
    """Runs proposed by TPE; Optuna prunes a run if half of the others were better at that point.

    With one worker, the runs depend only on the sweep, even if it is stopped and resumed. An Optuna
    trial is one attempt of a run; all attempts of a run have its number as the attribute `number`.
    """

    def __init__(self, sweep: Sweep, folder: Path):
        """Raise `UsageError` if the experiment is not a training or does not accept the range."""
        self._sweep, self._folder, self.total = sweep, folder, sweep.trials
        self._num_failed = 0
        sweep.import_all()
        self._default = lookup(sweep.experiments[0]).experiment()
        self._space = space(sweep.search)
        first = {path: _ends(values)[0] for path, values in self._space.items()}
        for path, values in self._space.items():
            for end in _ends(values):
                run = self._run(0, {**first, path: end})
        training = from_dict(json.loads(run.config))
        if not isinstance(training, Training):
            raise UsageError(
                f"{sweep.experiments[0]} is not a training, so a search has no metrics to use"
            )
        self._selection = training.selection
        self._direction = training.task.directions[training.selection.metric]
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._study: optuna.Study
        self._trials: dict[Path, optuna.Trial] = {}
        self._seen: dict[Path, tuple[int, list[float]]] = {}

    def resume(self) -> None:
        """Open the study in the folder, which must be locked; queue unfinished runs first.

        An incomplete last line is ignored. Raises `UserError` for other damage.
        """
        file = self._folder / STUDY
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        if (whole := text[: text.rfind("\n") + 1]) != text:
            print(f"{file}: its last line is incomplete, and was ignored", file=sys.stderr)
            write_text(file, whole)
        try:
            journal = JournalFileBackend(str(file))
            self._study = optuna.create_study(
                storage=optuna.storages.JournalStorage(journal),
                study_name=STUDY,
                direction=self._direction,
                pruner=optuna.pruners.MedianPruner(),
                load_if_exists=True,
            )
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{file} is damaged ({error}): restore it, or use another --workdir"
            ) from None
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)
        done = self._numbers(TrialState.COMPLETE, TrialState.PRUNED, TrialState.WAITING)
        for number, trial in sorted(self._numbers(TrialState.FAIL).items()):
            if number not in done:
                self._study.enqueue_trial(trial.params, user_attrs={"number": number})

    def _numbers(self, *states: Any) -> dict[int, Any]:
        """Return the last trial of each run in one of the states, by number of the run."""
        trials = self._study.get_trials(deepcopy=False, states=states or None)
        return {t.user_attrs["number"]: t for t in trials if "number" in t.user_attrs}

    # Methods of a feed.

    def next(self) -> Run | None:
        number = len(self._numbers())
        if number >= self._sweep.trials and not self._numbers(TrialState.WAITING):
            return None
        # A new sampler per run, so that proposals do not depend on where a search was stopped.
        self._study.sampler = optuna.samplers.TPESampler(seed=number, constant_liar=True)
        trial = self._study.ask(self._space)
        number = trial.user_attrs.get("number", number)
        trial.set_user_attr("number", number)
        run = self._run(number, trial.params)
        self._trials[run.workdir] = trial
        return run

    def should_prune(self, run: Run) -> bool:
        self._report(run)
        return bool(self._trials[run.workdir].should_prune())

    def finished(self, run: Run, state: State, *, pruned: bool) -> State:
        trial = self._trials[run.workdir]
        values = self._report(run)
        if state.state == "complete" and not values:
            message = "there are no validation metrics to search by: set --data.validation above 0"
            state = states.record_end(run.workdir, state, "failed", message, 1)
        if state.state == "stopped" and pruned:
            state = states.record_end(
                run.workdir, state, "pruned", "half of the trials were better at this point"
            )
        if state.state == "complete":
            # The metric of the reported checkpoint, the last or the best.
            last = self._selection.report == "last"
            self._study.tell(trial, values[-1] if last else best(values, self._direction))
        elif state.state != "stopped":
            pruned = state.state == "pruned"
            self._num_failed += not pruned
            self._study.tell(trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)
        return state

    def best(self) -> str:
        """Describe the best run so far in one line; "" if none is complete."""
        if not self._numbers(TrialState.COMPLETE):
            return ""
        best = self._study.best_trial
        words = " ".join(word for path, v in best.params.items() for word in self._words(path, v))
        return f"Best: validation {self._selection.metric} {best.value:.4f} with {words}"

    @property
    def num_finished(self) -> int:
        return len(self._numbers(TrialState.COMPLETE, TrialState.PRUNED)) + self._num_failed

    # Conversions between Optuna and runs.

    def _words(self, path: str, value: Any) -> list[str]:
        return override(self._default, path, str(value))

    def _run(self, number: int, params: Mapping[str, Any]) -> Run:
        words = [word for path, value in params.items() for word in self._words(path, value)]
        name = f"trial-{number:04}"
        return plan_run(self._sweep, self._default, words, self._folder, (), name)

    def _report(self, run: Run) -> list[float]:
        """Report a run's new metrics to Optuna; return all its validation metrics."""
        file = run.workdir / METRICS_FILE
        changed = file.stat().st_mtime_ns if file.exists() else 0
        before, reported = self._seen.get(run.workdir, (0, []))
        if changed == before:
            return reported
        rows = [row for row in read_metrics(run.workdir) if row.get("split") == "validation"]
        values = [float(row[self._selection.metric]) for row in rows]
        for index in range(len(reported), len(values)):
            self._trials[run.workdir].report(values[index], index + 1)
        self._seen[run.workdir] = (changed, values)
        return values
