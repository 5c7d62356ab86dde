"""A run's folder: who writes to it, what was run, by which attempts, and whether it may resume."""

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

if TYPE_CHECKING:  # which loads tyro, and an export is opened without
    from cnn_research.core.experiment import Experiment

CONFIG = "config.json"
RUN = "run.json"
RESOLVED_CONFIG = "resolved_config.json"
"""The experiment bound to its data, so that the network can be used without them."""
EVALUATION = "evaluation.json"
EVALUATED = ("validation", "test", "target")
"""The splits that are evaluated; evaluation.json has the metrics of each under its name."""
CHECKPOINTS = "checkpoints"
REPORT_FOLDER = "report"
SWEEP = "sweep.json"
"""File in a folder of several runs: the fields that vary, and the runs in order."""
LOCK, HOLDER = ".lock", ".locked_by"
"""The file whose lock a run holds, and the one that names its process: where files are locked by
force, nobody else can read the first."""
LOCK_SECONDS = 0.5
"""A lock is waited for so long: who only asks `is_locked` holds it for an instant."""
SOURCE_RECORD = "source.json"
"""File beside a copy of the packages: their commit, and the differences from it."""

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
    """Return whether this process is the one of several that writes files."""
    from cnn_research.core.distributed import is_first_process  # JAX, which tables do not need

    return is_first_process()


@contextlib.contextmanager
def locked(workdir: Path, *, enabled: bool = True) -> Iterator[None]:
    """Create the folder, and lock it against other runs.

    Of several processes of one run, the first locks it for all; without `enabled`, where nothing is
    to be written, none does. A `UserError` if it cannot be written to, or another process runs in
    it.
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
            f"another process ({name}) is running in {workdir}: wait for it, or name another "
            "--workdir"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot write to the workdir {workdir} ({error.strerror}): name another --workdir"
        ) from None
    try:
        holder.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        lock.release()


def is_locked(workdir: Path) -> bool:
    """Return whether a process of this machine holds the lock of the folder."""
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
    """The experiment that a folder holds, or None; a `UserError` for a damaged config.json."""
    file = workdir / CONFIG
    if not file.exists():
        return None
    try:
        return config_of(workdir, json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is damaged ({error}): restore it, or name another workdir"
        ) from None


def config_of(workdir: Path, values: Any) -> Any:
    """A config of the run in a folder, from JSON values.

    A `UserError` where a class of it is not registered: what was imported when the run was trained
    is named, and never imported here.
    """
    try:
        return from_dict(values)
    except UnknownClass as error:
        imports = [name for each in attempts_of(workdir) for name in each.get("imports", ())]
        advice = f"; {how_to_import(list(dict.fromkeys(imports)))}" if imports else ""
        raise UserError(f"{workdir}: {error}{advice}") from None


def attempts_of(workdir: Path) -> list[dict[str, Any]]:
    """The attempts at the run in a folder, in order; empty where none is recorded."""
    return list(read_json(workdir / RUN).get("attempts", ()))


def evaluated_config(workdir: Path) -> dict[str, Any]:
    """Read config.json, with the fields of the last evaluation; empty where it cannot be read."""
    config = read_json(workdir / CONFIG)
    return config and config | read_json(workdir / EVALUATION).get("config", {})


def check_same(experiment: Experiment, workdir: Path, may_differ: tuple[str, ...]) -> None:
    """Raise `UsageError` if the folder holds a run of a config other than this one.

    Fields, or dataclasses of fields, whose paths are in `may_differ` do not matter.
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
        shown = ", ".join(f"{n} was {old.get(n)!r} and is now {new.get(n)!r}" for n in names[:3])
        more = f", and {len(names) - 3} more" if len(names) > 3 else ""
        free = f" (only {', '.join(may_differ)} may change)" if may_differ else ""
        raise UsageError(
            f"{workdir} holds a run of another config: {shown}{more}; name another --workdir, or "
            f"repeat the fields of that run{free}"
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


_CHOICES = contextvars.ContextVar("choices", default="")


@contextlib.contextmanager
def choices_recorded(text: str) -> Iterator[None]:
    """Record with the attempts that begin inside, beside their command, what was chosen for it."""
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
    """Write config.json, and add an attempt to run.json: from both the run can be repeated.

    Of several processes of one run, the first writes. `devices` are those of this attempt, `facts`
    JSON values of the run (parameters, data). Of classes from outside, what to import for them and
    the text of their modules is kept. `step` is the number of train steps (of finished
    stages, in a pipeline) left by earlier attempts; None for results made anew each time.
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
    """Write source text to the folder, unless an attempt has; return the name of its file."""
    name = f"source-{hashlib.sha256(text.encode()).hexdigest()[:8]}{ending}"
    write_text(workdir / name, text)
    return name


def now() -> str:
    """The time, UTC, as records have it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def add_facts(workdir: Path, **facts: Any) -> None:
    """Add JSON values to run.json, or replace them; of several processes the first does."""
    if writes_files():
        write_json(workdir / RUN, {**read_json(workdir / RUN), **facts})


def effective_attempts(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Attempts of a run.json that contributed to its result, in order.

    An attempt counts if a later one began with a step of it, or the run ended with one: neither a
    restart after completion, nor one that was stopped before its first checkpoint. Of results made
    anew each time only the last counts.
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
    """The processor's name and how many cores this process may use."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = (line.partition(":")[2] for line in lines if line.startswith("model name"))
        cpu = next(names, cpu).strip()
    return {"cpu": cpu, "cores": cores(), "system": platform.system()}


def cores() -> int:
    """The number of processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # on a Mac


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def read_json(file: Path) -> dict[str, Any]:
    """The file's values; empty if it is absent or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write the file whole or not at all; NaN and infinities, which JSON lacks, become null."""
    write_text(file, json.dumps(_finite(values), indent=2, allow_nan=False) + "\n")


def _finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


@contextlib.contextmanager
def atomic_directory(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder` once it is complete.

    Only the first of several processes replaces it; the others' folders are deleted.
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
        os.replace(folder, old)  # a folder that is not empty cannot be replaced in one go
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


@functools.cache
def source_facts(root: Path = ROOT) -> tuple[str, str]:
    """The commit that runs, and what differs from it; empty where no git keeps this source."""
    if record := read_json(root / SOURCE_RECORD):
        return record["commit"], record["difference"]

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        ended = subprocess.run(command, capture_output=True, check=True, timeout=10)
        return ended.stdout.decode("utf-8", "replace")

    try:
        # Installed below somebody's checkout, the package is not one of that repository's files.
        git("ls-files", "--error-unmatch", str(Path(__file__).resolve().relative_to(ROOT)))
        return git("rev-parse", "HEAD").strip(), git("diff", "HEAD", "--", *SOURCE_FILES)
    except (OSError, subprocess.SubprocessError):
        return "", ""
