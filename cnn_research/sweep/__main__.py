"""`python -m cnn_research.sweep`: many runs for one question, on this machine or on SLURM."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnn_research.core.errors import UsageError, UserError, install_command, run_command
from cnn_research.core.progress import duration
from cnn_research.core.run_folder import locked, read_json
from cnn_research.core.terminal import console, show
from cnn_research.sweep import definition, local, slurm, states
from cnn_research.sweep.source import copy_source

EPILOG = """\
All other arguments override fields of every run, as in launch.py: --epochs=3.
Repeat the command to run missing and failed runs.

  python -m cnn_research.sweep status FOLDER    show the progress of a sweep
"""

SLURM_ONLY = ("partition", "time", "cpus", "gpus", "memory", "parallel")
MINUTES = 60
PARALLEL = 16
REFRESH_SECONDS = 2


def main(words: Sequence[str]) -> int:
    """Run a sweep or show its progress; return the exit code."""
    return _status(words[1:]) if words[:1] == ["status"] else _sweep(words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cnn_research.sweep",
        description="Run many variants of an experiment: grids, lists, seeds, or a search.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    repeated: Any = {"action": "append", "default": []}
    add = parser.add_argument_group("the runs").add_argument
    add("--experiment", **repeated, metavar="NAME", help="an experiment; may be repeated")
    text = "values of a field; with several grids, all combinations are run"
    add("--grid", **repeated, metavar="FIELD=A,B", help=text)
    text = "overrides of one run, separated by spaces; may be repeated"
    add("--variant", **repeated, metavar="WORDS", help=text)
    text = "values that Optuna chooses from: '1e-4..1e-2 log', 16..64, or adam,sgd"
    add("--search", **repeated, metavar="FIELD=LOW..HIGH", help=text)
    add("--seeds", type=int, default=0, metavar="N", help="repeat all runs with seeds 0 to N-1")
    add("--trials", type=int, default=0, metavar="N", help="number of runs of a search")
    text = "a file or module of your own that defines experiments; may be repeated"
    add("--import", **repeated, dest="imports", metavar="FILE.py", help=text)
    text = "a file with all of these options, as in experiments/sweeps/"
    add("--file", type=Path, metavar="FILE.toml", help=text)
    add = parser.add_argument_group("the machines").add_argument
    text = "folder of the sweep (default: runs/NAME-HASH)"
    add("--workdir", type=Path, metavar="FOLDER", help=text)
    text = "where to run: on this machine, or as a job array on SLURM"
    add("--cluster", choices=("local", "slurm"), default="local", help=text)
    add("--workers", type=int, metavar="N", help="local: number of processes (default: 1)")
    add("--partition", metavar="NAME", help="slurm: partition of the cluster")
    text = f"slurm: time limit, at which a run saves and is queued again (default: {MINUTES})"
    add("--time", type=int, metavar="MINUTES", help=text)
    add("--cpus", type=int, metavar="N", help="slurm: processor cores per run")
    add("--gpus", type=int, metavar="N", help="slurm: GPUs per run")
    add("--memory", type=float, metavar="GB", help="slurm: memory per run")
    text = f"slurm: maximum number of simultaneous runs (default: {PARALLEL})"
    add("--parallel", type=int, metavar="N", help=text)
    return parser


def _sweep(arguments: Sequence[str]) -> int:
    options, words = _parser().parse_known_args(arguments)
    # Check for contradictory flags before reading anything.
    on_slurm = options.cluster == "slurm"
    given = [name for name in SLURM_ONLY if getattr(options, name) is not None]
    if given and not on_slurm:
        raise UsageError(f"--{given[0]} is for SLURM: add --cluster=slurm, or omit it")
    if on_slurm and options.workers is not None:
        raise UsageError("--workers is for this machine: on SLURM use --parallel")
    for name in ("workers", "time", "cpus", "parallel"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UsageError(f"--{name} is {value}: must be 1 or more")

    sweep = _definition(options, words)
    sweep.check()
    if on_slurm:
        if sweep.search:
            raise UsageError(
                "a search is one process until its last run ends: omit --cluster=slurm, and start "
                "it on any machine, or as a separate job"
            )
        slurm.check()
    name = options.file.stem if options.file else sweep.experiments[0]
    folder = options.workdir or Path("runs") / f"{name}-{sweep.hash}"
    definition.check_same(sweep, folder)
    if sweep.search:
        return _search(sweep, folder, options.workers or 1)
    # All runs are known in advance; start those that are missing or failed.
    runs = sweep.runs(folder)
    with locked(folder):
        definition.write(sweep, runs, folder)
        left = _left(runs, folder)
        if left or on_slurm:
            done = len(runs) - len(left)
            before = f"{done} complete or submitted, " if done else ""
            print(f"{len(runs)} runs in {folder}: {before}{len(left)} to run", flush=True)
        if on_slurm:
            return _submit(left, folder, options)
        if left:
            workers = min(options.workers or 1, len(left))
            _run(local.Feed(left, total=len(runs)), workers, folder, "runs")
        return _conclude([run.workdir for run in runs], folder)


def _definition(options: argparse.Namespace, words: Sequence[str]) -> definition.Sweep:
    """Create the sweep from the command line or a file."""
    if options.file is None:
        return definition.Sweep(
            experiments=tuple(options.experiment),
            words=tuple(words),
            grid={
                path: tuple(values.split(",")) for path, values in map(_assignment, options.grid)
            },
            variants=tuple(options.variant),
            seeds=options.seeds,
            search=dict(map(_assignment, options.search)),
            trials=options.trials,
            imports=tuple(options.imports),
        )
    typed = ("experiment", "grid", "variant", "seeds", "search", "trials")
    if also := [name for name in typed if getattr(options, name)]:
        raise UsageError(f"--{also[0]} and --file exclude each other: give one of the two")
    sweep = definition.from_toml(options.file)
    imports = (*sweep.imports, *options.imports)
    return dataclasses.replace(sweep, words=(*sweep.words, *words), imports=imports)


def _assignment(text: str) -> tuple[str, str]:
    path, equals, value = text.partition("=")
    if not (path and equals and value):
        raise UsageError(f"'{text}' is not FIELD=VALUES, such as optimizer.learning-rate=1e-3,3e-4")
    return path.removeprefix("--"), value


def _run(feed: local.Feed, workers: int, folder: Path, what: str) -> None:
    """Run the remaining runs, and print a line for each that ends."""

    def say(run: definition.Run, state: states.State) -> None:
        message = f"  {state.message}" if state.state == "failed" else ""
        count = f"[{feed.num_finished}/{feed.total}]"
        print(f"{count} {state.state}  {run.name}  {duration(state.seconds)}{message}", flush=True)

    stopped = local.run_locally(feed, workers, copy_source(folder), say)
    if stopped:
        ended = f"{feed.num_finished} of {feed.total} {what} finished in {folder}"
        raise stopped.error(ended)


def _search(sweep: definition.Sweep, folder: Path, workers: int) -> int:
    try:
        from cnn_research.sweep import search
    except ModuleNotFoundError:
        raise UserError(
            f"a search needs Optuna, which is not installed: {install_command('search')}"
        ) from None
    feed = search.Search(sweep, folder)
    with locked(folder):
        feed.resume()
        definition.write(sweep, (), folder)
        if feed.num_finished < feed.total:
            ended = f"{feed.num_finished} of {feed.total} trials are finished"
            print(f"{ended}; the others run in {folder}")
            _run(feed, workers, folder, "trials")
        print(feed.best(), flush=True)
        return _conclude(definition.trial_folders(folder), folder)


def _submit(left: Sequence[definition.Run], folder: Path, options: argparse.Namespace) -> int:
    if left:
        parallel = options.parallel or PARALLEL
        number = slurm.submit(
            left,
            folder,
            copy_source(folder),
            partition=options.partition,
            time=options.time or MINUTES,
            cpus_per_task=options.cpus,
            gpus_per_node=options.gpus,
            mem=None if options.memory is None else f"{round(1024 * options.memory)}M",
            array_parallelism=parallel,
        )
        print(f"Submitted as job {number}: {len(left)} runs, at most {parallel} at a time.")
    print(f"Progress: python -m cnn_research.sweep status {shlex.quote(str(folder))}")
    return 0


def _left(runs: Sequence[definition.Run], folder: Path) -> list[definition.Run]:
    """Return the runs that are not complete or queued; raise `UserError` if squeue fails."""
    left = [run for run in runs if states.read(run.workdir).state not in states.ENDED]
    jobs = read_json(folder / states.JOBS)
    submitted = sum(run.name in jobs for run in left)
    queue = states.jobs_in_queue() if submitted else {}
    if queue is None:
        raise UserError(
            f"squeue failed, and {submitted} submitted runs may still be queued, so nothing was "
            f"started: try again later, or delete {folder / states.JOBS} if none of them is queued"
        )
    return [run for run in left if jobs.get(run.name) not in queue]


def _conclude(workdirs: Sequence[Path], folder: Path) -> int:
    """Print the results of the runs."""
    from cnn_research.report.runs import as_markdown, group_runs, read_run

    runs = states.all_states(folder, workdirs)
    complete = [workdir for workdir, state in runs.items() if state.state == "complete"]
    groups = group_runs(
        run
        for workdir in complete
        if (workdir / "config.json").exists() and (run := read_run(workdir)) is not None
    )
    if groups:
        show(f"\n{as_markdown(groups)}\n")
    print(
        f"{states.counts(runs.values())}; tensorboard --logdir {shlex.quote(str(folder))}",
        flush=True,
    )
    failed = {w.name: s.message or s.state for w, s in runs.items() if s.state not in states.ENDED}
    for name, message in failed.items():
        print(f"failed: {name}: {message}", file=sys.stderr)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed; the same command repeats only those"
        )
    return 0


# The table ---------------------------------------------------------------------------------------


def _status(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cnn_research.sweep status",
        description="Show the progress of a sweep; in a terminal, until its last run ends.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args(arguments).folder

    live = sys.stdout.isatty()
    while True:
        known, names = definition.read(folder)
        listed = [folder.absolute() / definition.RUNS / name for name in names]
        workdirs = definition.trial_folders(folder) if known["search"] else listed
        runs = states.all_states(folder, workdirs)
        active = any(state.state in ("running", "queued") for state in runs.values())
        if live:
            console().clear()
        show(states.table(runs))
        if not (live and active):
            return 0
        time.sleep(REFRESH_SECONDS)


if __name__ == "__main__":
    sys.exit(run_command(main))
