"""The definition of a sweep, and its runs."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_research.core.config import canonical_json, config_hash, did_you_mean, flatten
from cnn_research.core.definitions import import_outside
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import Experiment, lookup
from cnn_research.core.files import EXPERIMENTS
from cnn_research.core.run_folder import CONFIG, SWEEP, read_json, write_json

RUNS = "runs"
MOST_RUNS = 10_000
"""Maximum number of seeds or trials in a sweep."""
LONGEST_NAME = 100
"""Maximum number of characters in a run's name before its hash."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A set of runs with varied fields; values are as on the command line."""

    experiments: tuple[str, ...]
    """Names of registered experiments; each is run with all variations."""
    words: tuple[str, ...] = ()
    """Overrides of all runs, as for `launch.py`."""
    grid: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Values by path of their field; all combinations are run."""
    variants: tuple[str, ...] = ()
    """Overrides of single runs, one line per run."""
    seeds: int = 0
    """Number of seeds, 0, 1, ..., to repeat all runs with; 0 keeps the experiment's own seed."""
    search: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Search space by path of the field: `1e-4..1e-2 log`, `16..64`, `adam,sgd`."""
    trials: int = 0
    """Number of runs of a search."""
    imports: tuple[str, ...] = ()
    """Modules, or files that end in `.py`, that define experiments and their parts."""

    def check(self) -> None:
        """Raise `UsageError` for contradictory fields."""
        if not self.experiments:
            raise UsageError("nothing to run: give --experiment=NAME or --file=FILE.toml")
        for name, count in (("seeds", self.seeds), ("trials", self.trials)):
            if not 0 <= count <= MOST_RUNS:
                raise UsageError(f"--{name} is {count}: must be from 0 to {MOST_RUNS}")
        if bool(self.search) != bool(self.trials):
            raise UsageError("--search and --trials need each other: give both")
        if self.search and (self.grid or self.variants or self.seeds or len(self.experiments) > 1):
            raise UsageError(
                "--search needs a single experiment, and chooses the runs itself: omit --grid, "
                "--variant and --seeds"
            )

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits that identify the sweep; they do not depend on `trials`."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value}
        text = json.dumps(given | {"trials": 0}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def runs(self, folder: Path) -> list[Run]:
        """Return all runs of a sweep that is not a search, in order.

        Raises `UsageError` for an invalid config or two equal runs; `UserError` if data that an
        experiment derives fields from does not exist.
        """
        self.import_all()
        runs: dict[str, Run] = {}
        for name in self.experiments:
            default = lookup(name).experiment()
            for words in self._overrides(default):
                run = plan_run(self, default, words, folder, words)
                if run.config in runs:
                    raise UsageError(
                        "two runs of the sweep are the same: "
                        f"{shlex.join(runs[run.config].words)} and {shlex.join(run.words)}; "
                        "omit one"
                    )
                runs[run.config] = run
        return list(runs.values())

    def import_all(self) -> None:
        """Import the sweep's modules; raise `UsageError` if an import fails."""
        for name in self.imports:
            import_outside(name)

    def _overrides(self, default: Experiment) -> Iterator[list[str]]:
        """Yield the overrides of each run of an experiment, without those of all runs."""
        axes = [
            [override(default, path, value) for value in values]
            for path, values in self.grid.items()
        ]
        variants = [shlex.split(line) for line in self.variants] or [[]]
        seeds = [[f"--seed={seed}"] for seed in range(self.seeds)] or [[]]
        for parts in itertools.product(variants, *axes, seeds):
            yield [word for part in parts for word in part]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    experiment: str
    words: tuple[str, ...]
    workdir: Path
    """Absolute path."""
    config: str
    """The experiment with all fields, as canonical JSON."""
    imports: tuple[str, ...] = ()
    """Modules, and absolute paths of files, that its process imports first."""

    @property
    def name(self) -> str:
        return self.workdir.name

    @property
    def command(self) -> list[str]:
        experiment = f"--experiment={self.experiment}"
        imports = [f"--import={name}" for name in self.imports]
        return ["launch.py", *imports, experiment, *self.words, f"--workdir={self.workdir}"]


def plan_run(
    sweep: Sweep,
    default: Experiment,
    words: Sequence[str],
    folder: Path,
    naming: Sequence[str],
    name: str = "",
) -> Run:
    """Create a run of an experiment with the sweep's overrides and `words`.

    The config is checked, but not the data. The folder's name is a hash preceded by `name`, or by
    the experiment and the words in `naming`. Raises `UsageError` for words that are unknown to the
    experiment or contradict each other.
    """
    from cnn_research.cli.fields import with_suggestions

    words = (*sweep.words, *words)
    experiment, _ = with_suggestions(default, list(words))
    experiment.check()
    if not name:
        # Shorten flags to the last part of their paths: `learning-rate=1e-3`.
        parts = [re.sub(r"^--(?:[^=]*\.)?", "", word) for word in naming]
        name = re.sub(r"[^\w.=+-]+", "_", "-".join([default.name, *parts]))[:LONGEST_NAME]
    workdir = folder.absolute() / RUNS / f"{name}-{config_hash(experiment, default)}"
    # Jobs on a cluster may start in another folder.
    imports = [str(Path(n).resolve()) if n.endswith(".py") else n for n in sweep.imports]
    return Run(default.name, words, workdir, canonical_json(experiment), tuple(imports))


def override(default: Experiment, path: str, value: str) -> list[str]:
    """Format a field and its value as words of the command line; tuples have several."""
    path = path.removeprefix("--")
    is_flag = isinstance(flatten(default).get(path.replace("-", "_")), bool)
    if is_flag and value.lower() in ("true", "false"):
        before, dot, last = path.rpartition(".")
        return [f"--{path}" if value.lower() == "true" else f"--{before}{dot}no-{last}"]
    values = shlex.split(value)
    return [f"--{path}={value}"] if len(values) == 1 else [f"--{path}", *values]


# As files ----------------------------------------------------------------------------------------


def from_toml(file: Path) -> Sweep:
    """Read a sweep from a TOML file; raise `UsageError` if it is invalid.

    Its keys are the fields of `Sweep`; values in `grid` may be numbers, strings, booleans or lists.
    """
    shipped = EXPERIMENTS.parent / file  # beside the experiments, wherever these are
    try:
        text = (file if file.exists() else shipped).read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read ({error}): give another --file") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is not TOML: {error}") from None
    names = [field.name for field in dataclasses.fields(Sweep)]
    for name in values:
        if name not in names:
            raise UsageError(
                f"{file} has '{name}'{did_you_mean(name, names)}; a sweep has {', '.join(names)}"
            )

    def texts(name: str) -> tuple[str, ...]:
        return tuple(_of(str, each, name) for each in _of(list, values.get(name, []), name))

    try:
        grid = _of(dict, values.get("grid", {}), "grid").items()
        search = _of(dict, values.get("search", {}), "search").items()
        return Sweep(
            experiments=texts("experiments"),
            words=texts("words"),
            grid={path: tuple(map(as_typed, _of(list, each, path))) for path, each in grid},
            variants=texts("variants"),
            seeds=_of(int, values.get("seeds", 0), "seeds"),
            search={path: _of(str, each, path) for path, each in search},
            trials=_of(int, values.get("trials", 0), "trials"),
            imports=texts("imports"),
        )
    except TypeError as error:
        raise UsageError(f"{file}: {error}") from None


def _of(kind: type, value: Any, name: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        words = {list: "a list", dict: "a table", str: "text", int: "a whole number"}
        raise TypeError(f"'{name}' is {value!r}: must be {words[kind]}")
    return value


def as_typed(value: Any) -> str:
    """Format a value of a TOML file as typed; entries of a list are separated by spaces."""
    return " ".join(map(as_typed, value)) if isinstance(value, list) else str(value)


def write(sweep: Sweep, runs: Sequence[Run], folder: Path) -> None:
    """Write sweep.json: the sweep, and its runs if they are known in advance."""
    listed = [
        {"name": run.name, "experiment": run.experiment, "words": list(run.words)} for run in runs
    ]
    write_json(folder / SWEEP, {"sweep": dataclasses.asdict(sweep), "runs": listed})


def read(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Read the fields of a folder's sweep and the names of its runs; raise `UsageError` if there is
    no sweep."""
    values = read_json(folder / SWEEP)
    try:
        return values["sweep"], [run["name"] for run in values["runs"]]
    except (KeyError, TypeError):
        raise UsageError(f"{folder} has no sweep: it has no readable {SWEEP}") from None


def trial_folders(folder: Path) -> list[Path]:
    """Return the folders of a search's runs so far, in order."""
    return sorted((folder.absolute() / RUNS).glob("trial-*"))


def check_same(sweep: Sweep, folder: Path) -> None:
    """Raise an error if the folder has another sweep; only the number of trials may change."""
    if not (folder / SWEEP).exists():
        if (folder / CONFIG).exists():
            raise UsageError(f"{folder} has a run, not a sweep: use another --workdir")
        return
    try:
        old, _ = read(folder)
    except UsageError:
        raise UserError(
            f"{folder / SWEEP} is damaged: restore it, or use another --workdir"
        ) from None
    new = json.loads(json.dumps(dataclasses.asdict(sweep)))
    # An empty field may be missing in a file of an earlier version.
    changed = [name for name in new if (old.get(name) or new[name]) and old.get(name) != new[name]]
    different = [name for name in changed if name != "trials"]
    if different:
        shown = ", ".join(f"{n} was {old.get(n)!r} and is now {new[n]!r}" for n in different)
        raise UsageError(
            f"{folder} has another sweep: {shown}; use another --workdir, or repeat that sweep"
        )
