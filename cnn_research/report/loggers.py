"""Loggers, configs of the services and files that show a run's metrics besides metrics.jsonl."""

from __future__ import annotations

import abc
import dataclasses
import functools
import importlib.util
import math
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import tyro

from cnn_research.core.config import (
    config_fields,
    did_you_mean,
    differences,
    flatten,
    register_config,
    to_dict,
)
from cnn_research.core.errors import UsageError, install_command
from cnn_research.core.run_folder import RUN, SWEEP, add_facts, read_json
from cnn_research.data.images import printable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from tensorboardX import SummaryWriter

EVENTS_FOLDER = "events"


class Mirror(abc.ABC):
    """One run in one logger, from the start to the end of a process."""

    last_kept: float = -1
    """The last step whose rows it has from earlier processes; -1 for a new run."""

    @abc.abstractmethod
    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Show the values of a row of metrics.jsonl; some may not be finite."""

    def report(self, page: Path, results: Mapping[str, float]) -> None:  # noqa: B027 (optional)
        """Show the report and the final metrics, named like `test/accuracy`."""

    def close(self, *, failed: bool) -> None:  # noqa: B027 (optional)
        """Flush and close; `failed` if the run ended with an error."""


@dataclasses.dataclass(frozen=True)
class Logger(abc.ABC):
    """Config of a logger, which opens a `Mirror`; `--loggers` takes its class name in lower case.

    Register a subclass to add another service or file.
    """

    package: ClassVar[str] = ""
    """Package that it requires, also the name of the extra that installs it."""

    def check_installed(self) -> None:
        """Raise `UsageError` if its package is missing."""
        if self.package and importlib.util.find_spec(self.package) is None:
            raise UsageError(
                f"--loggers={_name_of(self)} needs {self.package}, which is not installed: "
                f"{install_command(self.package)}, or leave it out"
            )

    @abc.abstractmethod
    def open(self, workdir: Path, config: Any, last_kept: int) -> Mirror:
        """Open the mirror of the run in a folder, the same one as in an earlier process.

        `config` is the run's experiment. Rows of metrics.jsonl after step `last_kept` are dropped
        or rewritten.
        """


def _name_of(logger: Logger) -> str:
    return type(logger).__name__.lower()


def _named(words: list[str]) -> Logger:
    """Create the logger with the given name, with default fields."""
    kinds = {kind.__name__.lower(): kind for kind in Logger.__subclasses__()}
    if words[0] not in kinds:
        near = did_you_mean(words[0], list(kinds))
        raise UsageError(f"--loggers: unknown logger '{words[0]}'{near}; choose {', '.join(kinds)}")
    return kinds[words[0]]()


TYPED = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="NAME",
    instance_from_str=_named,
    is_instance=lambda value: isinstance(value, Logger),
    str_from_instance=lambda logger: [_name_of(logger)],
)
"""Parses loggers on the command line by name."""


# TensorBoard --------------------------------------------------------------------------------------


@register_config
@dataclasses.dataclass(frozen=True)
class TensorBoard(Logger):
    """TensorBoard: event files in the run's folder."""

    def open(self, workdir: Path, config: Any, last_kept: int) -> Events:
        return Events(workdir, config, last_kept)


class Events(Mirror):
    """Event files in two TensorBoard runs, as it selects only a few runs by default.

    `events` has the curves, tagged `loss/train`, `loss/validation`, histograms and training images;
    `events/report` has everything that a new report replaces.
    """

    def __init__(self, workdir: Path, config: Any, last_kept: int):
        self._workdir, self._config, self._purged = workdir, config, last_kept + 1
        self._folder = workdir / EVENTS_FOLDER
        if any(self._folder.glob("events.*")):
            self.last_kept = last_kept
            # Open now, not at the first write, so that the purged steps stay hidden even if this
            # process is killed before it.
            self.curves  # noqa: B018

    @functools.cached_property
    def curves(self) -> SummaryWriter:
        """Writer of the data of training steps."""
        return self._writer(self._folder, self._purged)

    @functools.cached_property
    def pages(self) -> SummaryWriter:
        """Writer of the report; deletes an earlier one."""
        shutil.rmtree(self._folder / "report", ignore_errors=True)
        # A running TensorBoard that has read it discards it, too.
        return self._writer(self._folder / "report", 0)

    def _writer(self, folder: Path, purged: int) -> SummaryWriter:
        from tensorboardX import SummaryWriter

        return SummaryWriter(
            logdir=str(folder),
            purge_step=purged,
            flush_secs=10,
            # A full disk ends the thread that empties the queue; writing to a full queue blocks.
            max_queue=1000,
            # File names have whole seconds: a run restarted within one would overwrite its file.
            filename_suffix=f".{time.time_ns()}",
        )

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.curves.add_scalar(f"{name}/{split}", value, step)

    def report(self, page: Path, results: Mapping[str, float]) -> None:
        """Add the run to the table of hyperparameters."""
        from tensorboardX.summary import hparams

        plain = {
            path: value if isinstance(value, bool | int | float) else printable(str(value))
            for path, value in hyperparameters(self._config, self._workdir).items()
        }
        # The first summary lists the columns; without it, TensorBoard finds them itself and shows
        # those that differ between runs first.
        _, *summaries = hparams(plain, dict(results))
        for summary in summaries:
            self.pages.file_writer.add_summary(summary)
        for name, value in results.items():
            self.pages.add_scalar(name, value)

    def close(self, *, failed: bool) -> None:
        for name in ("curves", "pages"):
            if name in vars(self):
                vars(self).pop(name).close()


def hyperparameters(experiment: Any, workdir: Path) -> dict[str, Any]:
    """Return a run's columns in TensorBoard's table, those in which runs may differ.

    In a sweep: the fields that it varies. Otherwise: the fields of the experiment, its data,
    network and optimizer, and one column per other part, with its values that are not defaults.
    """
    columns: dict[str, Any] = {}
    for field in config_fields(experiment):
        value = getattr(experiment, field.name)
        if field.name in {*experiment.resumable_fields} - {"epochs"}:
            continue  # it changes no result
        if not dataclasses.is_dataclass(value):
            columns[field.name] = value
        elif field.name in ("data", "model", "optimizer"):
            columns |= {field.name: type(value).__name__, **flatten(value, f"{field.name}.")}
        else:
            changed = differences(value, None).items()
            columns[field.name] = " ".join(f"{k}={v}" for k, v in changed if k != "class") or "-"
    words = [set(run["words"]) for run in read_json(workdir.parent / SWEEP).get("runs", ())]
    typed = set().union(*words) - set.intersection(*words) if words else set()
    names = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in typed}
    names |= {name.replace("no_", "", 1) for name in names}
    every = flatten(experiment) | columns
    return {p: v for p, v in every.items() for n in names if f"{p}.".startswith(f"{n}.")} or columns


# Services -----------------------------------------------------------------------------------------


@register_config
@dataclasses.dataclass(frozen=True)
class WandB(Logger):
    """Weights & Biases. Its environment variables set what is not given here;
    `WANDB_MODE=offline` writes only to the run's folder, for `wandb sync`."""

    package: ClassVar = "wandb"

    project: str = ""
    """Project; empty for `WANDB_PROJECT`."""
    entity: str = ""
    """User or team; empty for `WANDB_ENTITY`, or the user's own."""

    def open(self, workdir: Path, config: Any, last_kept: int) -> Mirror:
        import wandb

        known = _id_of_run(workdir, self)
        run = wandb.init(
            project=self.project or None,
            entity=self.entity or None,
            id=known,
            resume="allow",
            name=workdir.name,
            dir=str(workdir),
            config=to_dict(config),
            reinit="create_new",  # several seeds are trained at once
            settings=wandb.Settings(console="off"),
        )
        # Its own step counter only increases, but two rows may have the same step.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        _keep_id_of_run(workdir, self, run.id)
        return _WandBRun(run, math.inf if known else -1)


class _WandBRun(Mirror):
    def __init__(self, run: Any, last_kept: float):
        self._run, self.last_kept = run, last_kept

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **{f"{split}/{k}": v for k, v in values.items()}})

    def report(self, page: Path, results: Mapping[str, float]) -> None:
        import wandb

        self._run.summary.update({f"result/{name}": value for name, value in results.items()})
        self._run.log({"report": wandb.Html(page.read_text(encoding="utf-8"), inject=False)})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


@register_config
@dataclasses.dataclass(frozen=True)
class MLflow(Logger):
    """MLflow. Its environment variables set what is not given here."""

    package: ClassVar = "mlflow"

    experiment: str = ""
    """Experiment; empty for `MLFLOW_EXPERIMENT_NAME`, or `Default`."""
    tracking_uri: str = ""
    """Address of a server, a folder or an SQLite database; empty for `MLFLOW_TRACKING_URI`."""

    def open(self, workdir: Path, config: Any, last_kept: int) -> Mirror:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        client = MlflowClient(self.tracking_uri or None)
        known = _id_of_run(workdir, self)
        if known:
            client.update_run(known, status="RUNNING")
            return _MLflowRun(client, known, math.inf)
        name = self.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        existing = client.get_experiment_by_name(name)
        experiment = existing.experiment_id if existing else client.create_experiment(name)
        run_id = client.create_run(experiment, run_name=workdir.name).info.run_id
        fields = [
            Param(path, printable(str(value))[:6000]) for path, value in flatten(config).items()
        ]
        for first in range(0, len(fields), 100):  # the maximum per request
            client.log_batch(run_id, params=fields[first : first + 100])
        _keep_id_of_run(workdir, self, run_id)
        return _MLflowRun(client, run_id, -1)


class _MLflowRun(Mirror):
    def __init__(self, client: MlflowClient, run_id: str, last_kept: float):
        self._client, self._run_id, self.last_kept = client, run_id, last_kept

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._log({f"{split}/{name}": value for name, value in values.items()}, step)

    def report(self, page: Path, results: Mapping[str, float]) -> None:
        self._log({f"result/{name}": value for name, value in results.items()}, 0)
        self._client.log_artifact(self._run_id, str(page))

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        # The characters that MLflow accepts.
        names = {name: re.sub(r"[^\w/. :-]", "_", name) for name in values}
        metrics = [Metric(names[name], value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)


def _id_of_run(workdir: Path, logger: Logger) -> str | None:
    """Return a service's id of the run in a folder; None for a new run."""
    return read_json(workdir / RUN).get("loggers", {}).get(_name_of(logger))


def _keep_id_of_run(workdir: Path, logger: Logger, run_id: str) -> None:
    known = read_json(workdir / RUN).get("loggers", {})
    add_facts(workdir, loggers={**known, _name_of(logger): run_id})
