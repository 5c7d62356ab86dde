"""A run's folder: its lock, config and attempts, and checks before resuming."""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import functools
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from cnn_research.core.config import (
    UnknownClass,
    canonical_json,
    flatten,
    from_dict,
    outside_modules,
    with_fields,
)
from cnn_research.core.definitions import file_of, how_to_import, import_of
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.files import ROOT, write_text

if TYPE_CHECKING:  # imports tyro, which is not needed to open an export
    from cnn_research.core.experiment import Experiment

CONFIG = "config.json"
RUN = "run.json"
RESOLVED_CONFIG = "resolved_config.json"
"""The experiment bound to its data, so that the network can be used without the data."""
EVALUATION = "evaluation.json"
EVALUATED = ("validation", "test", "target")
"""Evaluated splits; evaluation.json has the metrics of each by name."""
CHECKPOINTS = "checkpoints"
REPORT_FOLDER = "report"
SWEEP = "sweep.json"
"""File in a folder of several runs: the fields that vary, and the runs in order."""
LOCK, HOLDER = ".lock", ".locked_by"
"""The file that a run locks, and the file with its process, separate as some systems do not let
other processes read a locked file."""
LOCK_SECONDS = 0.5
"""Seconds to wait for a lock, since `is_locked` acquires it briefly."""
SOURCE_RECORD = "source.json"
"""File next to a copy of the packages: their commit, and the differences from it."""

SOURCE_FILES = ("*.py", "*.cfg", "*.toml")
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


def writes_files() -> bool:
    """Return whether this process writes files; only the first of several does."""
    from cnn_research.core.distributed import is_first_process  # imports JAX, unneeded for tables

    return is_first_process()


@contextlib.contextmanager
def locked(workdir: Path, *, enabled: bool = True) -> Iterator[None]:
    """Create a folder, and lock it against other runs.

    If a run has several processes, the first locks it for all. If not `enabled`, as nothing will be
    written, it is not locked. Raises `UserError` if it is not writable or already locked.
    """
    if not (enabled and writes_files()):
        yield
        return
    lock, holder = FileLock(workdir / LOCK), workdir / HOLDER
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        name = holder.read_text(encoding="utf-8") if holder.exists() else "unknown"
        raise UserError(
            f"another process ({name}) is running in {workdir}: wait for it, or use another "
            "--workdir"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot write to the workdir {workdir} ({error.strerror}): use another --workdir"
        ) from None
    try:
        holder.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        lock.release()


def is_locked(workdir: Path) -> bool:
    """Return whether a process on this machine has locked the folder."""
    if not (workdir / LOCK).exists():
        return False
    try:
        with FileLock(workdir / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def saved_config(workdir: Path) -> Experiment | None:
    """Read a folder's experiment, None without one; raise `UserError` if config.json is damaged."""
    file = workdir / CONFIG
    if not file.exists():
        return None
    try:
        return config_of(workdir, json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is damaged ({error}): restore it, or use another workdir"
        ) from None


def config_of(workdir: Path, values: Any) -> Any:
    """Restore a config of the run in a folder from JSON values.

    Raises `UserError` if one of its classes is not registered; the message has the imports that the
    run recorded, which are not imported here.
    """
    try:
        return from_dict(values)
    except UnknownClass as error:
        imports = [name for each in attempts_of(workdir) for name in each.get("imports", ())]
        advice = f"; {how_to_import(list(dict.fromkeys(imports)))}" if imports else ""
        raise UserError(f"{workdir}: {error}{advice}") from None


def attempts_of(workdir: Path) -> list[dict[str, Any]]:
    """Read the attempts of the run in a folder, in order; empty if none is recorded."""
    return list(read_json(workdir / RUN).get("attempts", ()))


def evaluated_config(workdir: Path) -> dict[str, Any]:
    """Read config.json with the fields of the last evaluation; empty if it is not readable."""
    config = read_json(workdir / CONFIG)
    return config and config | read_json(workdir / EVALUATION).get("config", {})


def check_same(experiment: Experiment, workdir: Path, may_differ: tuple[str, ...]) -> None:
    """Raise `UsageError` if the folder has a run with a different config.

    Fields, or dataclasses of fields, with paths in `may_differ` are not compared.
    """
    saved = saved_config(workdir)
    if saved is None:
        return
    if saved.name != experiment.name:
        raise UsageError(
            f"{workdir} has a run of {saved.name}, not of {experiment.name}: use another --workdir"
        )
    old, new = flatten(saved), flatten(experiment)
    names = sorted(
        name
        for name in old.keys() | new.keys()
        if old.get(name) != new.get(name)
        and not any(name == free or name.startswith(f"{free}.") for free in may_differ)
    )
    if names:
        shown = ", ".join(f"{n} was {old.get(n)!r} and is now {new.get(n)!r}" for n in names[:3])
        more = f", and {len(names) - 3} more" if len(names) > 3 else ""
        free = f" (only {', '.join(may_differ)} may change)" if may_differ else ""
        raise UsageError(
            f"{workdir} has a run with another config: {shown}{more}; use another --workdir, or "
            f"the fields of that run{free}"
        )


STAGE = "stage:"
"""`stage:NAME` is the folder of another stage of a run's pipeline, and `stage:NAME/FILE` a file in
it, next to the run's own folder, so that both can be moved."""


def located(config: Any, workdir: Path) -> Any:
    """Replace `stage:NAME` in a config by absolute paths, for the run in `workdir`."""
    paths = {
        field: str(workdir.absolute().parent / value.removeprefix(STAGE))
        for field, value in flatten(config).items()
        if isinstance(value, str) and value.startswith(STAGE)
    }
    return with_fields(config, paths)


_CHOICES = contextvars.ContextVar("choices", default="")


@contextlib.contextmanager
def choices_recorded(text: str) -> Iterator[None]:
    """Record a text on suggested fields with attempts that begin in the block."""
    token = _CHOICES.set(text)
    try:
        yield
    finally:
        _CHOICES.reset(token)


def write_metadata(
    experiment: Experiment,
    workdir: Path,
    *,
    step: int | None = None,
    devices: Iterable[str] = (),
    **facts: Any,
) -> None:
    """Write config.json, and add an attempt to run.json; together they allow repeating the run.

    If a run has several processes, only the first writes. `devices` are those of this attempt,
    `facts` are JSON values of the run (parameters, data). For classes from outside, the imports and
    the source of their modules are recorded. `step` is the number of train steps (or finished
    stages of a pipeline) of earlier attempts; None if each attempt starts from scratch.
    """
    if not writes_files():
        return
    write_text(workdir / CONFIG, canonical_json(experiment))
    before = read_json(workdir / RUN)
    commit, difference = source_facts()
    modules = sorted(outside_modules(experiment))
    texts = {
        file.name: file.read_text(encoding="utf-8", errors="backslashreplace")
        for file in filter(None, map(file_of, modules))
    }
    outside = {
        "imports": list(dict.fromkeys(map(import_of, modules))),
        "sources": [_kept(workdir, text, f"-{name}") for name, text in texts.items()],
    }
    attempt = {
        "started": now(),
        "from_step": step,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        **({"choices": _CHOICES.get()} if _CHOICES.get() else {}),
        "commit": commit,
        "commit_is_clean": not difference,
        "source_diff": _kept(workdir, difference, ".diff") if difference else None,
        **(outside if modules else {}),
        "machine": machine(),
        "versions": versions(),
        "devices": list(devices),
    }
    seed = getattr(experiment, "seed", None)
    attempts = [*attempts_of(workdir), attempt]
    known = {"experiment": experiment.name, "seed": seed}
    write_json(workdir / RUN, before | known | facts | {"attempts": attempts})


def _kept(workdir: Path, text: str, ending: str) -> str:
    """Write source text to a file in the folder, named by its hash; return the file's name."""
    name = f"source-{hashlib.sha256(text.encode()).hexdigest()[:8]}{ending}"
    write_text(workdir / name, text)
    return name


def now() -> str:
    """Return the UTC time in ISO format."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def add_facts(workdir: Path, **facts: Any) -> None:
    """Add or replace JSON values in run.json, in the first process only."""
    if writes_files():
        write_json(workdir / RUN, {**read_json(workdir / RUN), **facts})


def effective_attempts(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the attempts in a run.json that contributed to its result, in order.

    An attempt contributed if a later one resumed from one of its steps, or the run ended with one.
    This excludes restarts after completion and attempts stopped before their first checkpoint. If
    each attempt starts from scratch, only the last one contributed.
    """
    attempts = list(run.get("attempts", ()))
    if attempts and attempts[-1]["from_step"] is None:
        return attempts[-1:]
    effective = []
    end = run.get("steps", math.inf)
    for attempt in reversed(attempts):
        if attempt["from_step"] < end:
            effective.append(attempt)
            end = attempt["from_step"]
    return effective[::-1]


def machine() -> dict[str, Any]:
    """Describe the processor, the number of cores available to this process, and the system."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = (line.partition(":")[2] for line in lines if line.startswith("model name"))
        cpu = next(names, cpu).strip()
    return {"cpu": cpu, "cores": cores(), "system": platform.system()}


def cores() -> int:
    """Return the number of processor cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # on a Mac


def versions() -> dict[str, str]:
    """Return the versions of Python and the packages that affect results."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file; empty if it is missing or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; NaN and infinities, which JSON does not have, become null."""
    write_text(file, json.dumps(_finite(values), indent=2, allow_nan=False) + "\n")


def _finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


@contextlib.contextmanager
def atomic_directory(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder` at the end of the block.

    Only the first of several processes replaces it; the folders of the others are deleted.
    """
    if not writes_files():
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    partial, old = (folder.with_name(f"{folder.name}.{word}") for word in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)  # a folder that is not empty cannot be replaced directly
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


@functools.cache
def source_facts(root: Path = ROOT) -> tuple[str, str]:
    """Return the running commit and the differences from it; empty if not in a git checkout."""
    if record := read_json(root / SOURCE_RECORD):
        return record["commit"], record["difference"]

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        ended = subprocess.run(command, capture_output=True, check=True, timeout=10)
        return ended.stdout.decode("utf-8", "replace")

    try:
        # A package installed inside another checkout is not tracked by that repository.
        git("ls-files", "--error-unmatch", str(Path(__file__).resolve().relative_to(ROOT)))
        return git("rev-parse", "HEAD").strip(), git("diff", "HEAD", "--", *SOURCE_FILES)
    except (OSError, subprocess.SubprocessError):
        return "", ""
