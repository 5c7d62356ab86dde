"""A run's folder: who writes to it, what was run, and whether that may go on."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import functools
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from cnn_research.core.config import canonical_json, flatten, from_dict, with_fields
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import Experiment

CONFIG = "config.json"
RUN = "run.json"
BOUND = "bound.json"
"""What training has taken from its data, so that the network can be asked without it."""
EVALUATION = "evaluation.json"
EVALUATED = ("validation", "test", "target")
"""The splits that are evaluated; of each, evaluation.json has the figures under its name."""
CHECKPOINTS = "checkpoints"
SWEEP = "sweep.json"
"""Of a folder of several runs: what varies, and the runs in order."""
SOURCE_RECORD = "source.json"
"""Beside a copy of the packages: of which commit they are, and what differs from it."""

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "scikit-learn",
    "tensorflow-datasets",
)


@contextlib.contextmanager
def claimed(workdir: Path, *, enabled: bool = True) -> Iterator[None]:
    """Makes the folder, and keeps every other run from writing to it meanwhile.

    Of several processes of one run, the first claims it for all.

    Args:
        workdir: the run's folder.
        enabled: False where nothing is to be written.

    Raises:
        UserError: the folder cannot be written to, or another process runs in it.
    """
    from cnn_research.core.distributed import is_first_process

    if not (enabled and is_first_process()):
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("a+")
    except OSError as error:
        raise UserError(
            f"cannot write to the workdir {workdir} ({error.strerror}): name another --workdir"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"another process ({lock.read().strip() or 'unknown'}) runs in {workdir}: "
                "wait for it, or name another --workdir"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}\n")
        lock.flush()
        yield


def is_claimed(workdir: Path) -> bool:
    """Whether a process of this machine holds the folder."""
    try:
        with (workdir / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def saved_config(workdir: Path) -> Experiment | None:
    """The experiment that a folder holds, or None if it holds none.

    Raises:
        UserError: its config.json cannot be read.
    """
    file = workdir / CONFIG
    if not file.exists():
        return None
    try:
        return from_dict(json.loads(file.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is damaged ({error}): restore it, or name another workdir"
        ) from None


def evaluated_config(workdir: Path) -> dict[str, Any]:
    """config.json as JSON values, with those by which the run was last evaluated in their place.

    The result is empty where there is no config.json that can be read.
    """
    config = read_json(workdir / CONFIG)
    return config and config | read_json(workdir / EVALUATION).get("config", {})


def check_same(experiment: Experiment, workdir: Path, may_differ: tuple[str, ...]) -> None:
    """Raises `UsageError` if the folder holds a run of a config other than this one.

    Args:
        experiment: what is to be done in the folder.
        workdir: the run's folder; an empty one is as good.
        may_differ: paths of fields, or of dataclasses of fields, that do not matter.
    """
    saved = saved_config(workdir)
    if saved is None:
        return
    if saved.name != experiment.name:
        raise UsageError(
            f"{workdir} holds a run of {saved.name}, not of {experiment.name}: name another "
            "--workdir"
        )
    old, new = flatten(saved), flatten(experiment)
    names = sorted(
        name
        for name in old.keys() | new.keys()
        if old.get(name) != new.get(name)
        and not any(name == free or name.startswith(f"{free}.") for free in may_differ)
    )
    if names:
        shown = ", ".join(f"{n} is {old.get(n)!r} there and {new.get(n)!r} now" for n in names[:3])
        more = f", and {len(names) - 3} more" if len(names) > 3 else ""
        free = f" (only {', '.join(may_differ)} may change)" if may_differ else ""
        raise UsageError(
            f"{workdir} holds a run of another config: {shown}{more}; name another --workdir, or "
            f"give the same fields{free}"
        )


STAGE = "stage:"
"""`stage:NAME` is the folder of that stage of the pipeline that a run belongs to, and
`stage:NAME/FILE` a file in it: beside the run's own folder, wherever both are moved."""


def located(config: Any, workdir: Path) -> Any:
    """The config of the run in `workdir` with absolute paths in place of `stage:NAME`."""
    paths = {
        field: str(workdir.absolute().parent / value.removeprefix(STAGE))
        for field, value in flatten(config).items()
        if isinstance(value, str) and value.startswith(STAGE)
    }
    return with_fields(config, paths)


def describe(experiment: Experiment, workdir: Path, **facts: Any) -> None:
    """Writes config.json and run.json, from which the run can be understood and repeated.

    Of several processes of one run, the first writes.

    Args:
        experiment: what is run.
        workdir: where.
        **facts: JSON values that only the run knows (parameters, data, devices).
    """
    from cnn_research.core.distributed import is_first_process

    if not is_first_process():
        return
    write_text(workdir / CONFIG, canonical_json(experiment))
    before = read_json(workdir / RUN)
    commit, difference = source_facts()
    if difference:
        write_text(workdir / "source.diff", difference)
    write_json(
        workdir / RUN,
        {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **before,
            "experiment": experiment.name,
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "commit": commit,
            "commit_is_clean": not difference,
            "machine": machine(),
            "versions": versions(),
            "seed": getattr(experiment, "seed", None),
            **facts,
        },
    )


def add_facts(workdir: Path, **facts: Any) -> None:
    """Adds JSON values to run.json, or replaces them; of several processes the first does."""
    from cnn_research.core.distributed import is_first_process

    if is_first_process():
        write_json(workdir / RUN, {**read_json(workdir / RUN), **facts})


def machine() -> dict[str, Any]:
    """The processor's name and how many cores this process may use."""
    return {"cpu": _cpu_name(), "cores": cores(), "system": platform.system()}


def cores() -> int:
    """How many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # on a Mac


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def read_json(file: Path) -> dict[str, Any]:
    """The file's values; empty if it is absent or damaged."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Writes the file whole or not at all; NaN and infinities, which JSON lacks, become null."""
    write_text(file, json.dumps(_finite(values), indent=2, allow_nan=False) + "\n")


def _finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def write_text(file: Path, text: str) -> None:
    """Writes the file whole or not at all."""
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, file)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write to, which takes the place of `folder` when all is written.

    Of several processes of one run, the first one's does; the others' are thrown away.
    """
    from cnn_research.core.distributed import is_first_process

    if not is_first_process():
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    partial, old = (folder.with_name(f"{folder.name}.{word}") for word in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)  # a folder that is not empty cannot be replaced in one go
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


@functools.cache
def source_facts() -> tuple[str, str]:
    """The commit that runs, and what differs from it; empty where there is no git."""
    root = Path(__file__).resolve().parent.parent
    if record := read_json(root / SOURCE_RECORD):
        return record["commit"], record["difference"]

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=10
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return ""

    return git("rev-parse", "HEAD").strip(), git("diff", "HEAD", "--", "*.py", "*.cfg", "*.toml")


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
