"""The command line: absl's flags say what to run, tyro's override the experiment's fields."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import operator
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from absl import flags, logging

from cnn_research.core.config import config_hash, did_you_mean, flatten, with_fields
from cnn_research.core.errors import Interrupted, UsageError, UserError, no_more_output, one_line
from cnn_research.core.experiment import Experiment, lookup, registry, run

FLAGS = flags.FLAGS

USAGE = """\
usage: python launch.py --experiment=NAME [--workdir=FOLDER] [--mode=MODE] [--FIELD=VALUE ...]

  --list                     every experiment, with its document and data
  --experiment=NAME --help   every field of that experiment: type, default, what it does
  --experiment=NAME          run it; the same command goes on where it was stopped
  --workdir=FOLDER           the folder of the run (default: runs/NAME-HASH, a hash of the fields)
  --dry-run                  say what it would take: time, memory, steps; and stop there
  --mode=train|evaluate      evaluate makes the report again, from the workdir alone
  --mode=export              the network as files that need JAX alone, from the workdir alone
  --mode=predict --input=IMAGES   what the run says about a file, a folder or 'a/pattern/*.jpg'
  --profile                  trace a few train steps into WORKDIR/profile/
  --replicas=N               N seeds at once, from --seed on, in WORKDIR/seed-0, ...; mean and std
  --FIELD=VALUE              override a field by its path: --optimizer.learning-rate=3e-4 --seed=1
  --model=NAME               another network, whose fields follow: `python -m cnn_research.models`
"""

LAUNCHER_FLAGS = (
    "experiment",
    "workdir",
    "mode",
    "input",
    "dry-run",
    "profile",
    "replicas",
    "list",
)

_HELP = ("--help", "-h", "-help", "-?")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl takes its own flags; the rest are the experiment's fields. For `app.run`."""
    try:
        # absl's own --help knows nothing of the experiment's fields: `main` answers instead. And it
        # takes no flag with a dash in its name.
        words = ["--dry_run" if word == "--dry-run" else word for word in argv]
        rest = FLAGS([word for word in words if word not in _HELP], known_only=True)
    except flags.Error as error:
        fail(UsageError(f"{one_line(error)}; `python launch.py --help` says how"))
    return rest + [word for word in argv if word in _HELP][:1]


def main(argv: Sequence[str]) -> None:
    """Lists, explains or runs an experiment; ends the program with its exit code."""
    if not FLAGS["verbosity"].present:
        # Orbax tells every step of every save; --verbosity=0 shows it.
        logging.set_verbosity(logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A folder's name may be no text, and what is said of it must not end a run.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        launch(list(argv[1:]))
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        fail(Interrupted("stopped before training began; nothing was changed", 130))
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        fail(UserError(f"{error.strerror}{where}: nothing that was saved before is lost"))


def launch(words: list[str]) -> None:
    """What `main` does, with errors as exceptions.

    Args:
        words: what absl left: overrides of fields, and perhaps `--help`.
    """
    if FLAGS.list:
        try:
            print(listing(), flush=True)
        except BrokenPipeError:
            no_more_output()
        return
    workdir = Path(FLAGS.workdir) if FLAGS.workdir else None
    saved = saved_experiment(workdir)
    if saved is None and FLAGS.experiment is None:
        if words and words[0] in _HELP:
            print(USAGE, end="")
            return
        for word in words:
            name = word.partition("=")[0].removeprefix("--")
            near = did_you_mean(name, list(LAUNCHER_FLAGS))
            if near:
                raise UsageError(f"there is no flag --{name}{near}")
        if FLAGS.mode not in (None, "train", "run"):
            if workdir is None:
                raise UsageError(f"--mode={FLAGS.mode} needs --workdir=FOLDER, the folder of a run")
            raise UserError(f"{workdir} holds no run (it has no config.json): check --workdir")
        raise UsageError(
            "say which experiment: --experiment=NAME (`python launch.py --list` shows all)"
        )
    if saved is not None:
        experiment, said = overridden(saved, words), ""
    else:
        experiment, said = fitted(lookup(FLAGS.experiment).experiment(), words)
    if FLAGS.dry_run and FLAGS.mode not in (None, "train", "run"):
        raise UsageError(f"--dry-run is about training: leave --mode={FLAGS.mode} out")
    mode = "dry-run" if FLAGS.dry_run else FLAGS.mode
    if mode not in (None, *experiment.modes):
        raise UsageError(
            f"--mode is '{mode}'{did_you_mean(mode, list(experiment.modes))}; "
            f"{experiment.name} has {', '.join(experiment.modes)}"
        )
    experiment.check()
    if workdir is None:
        replicas = f"-replicas{FLAGS.replicas}" if FLAGS.replicas else ""
        workdir = Path("runs") / f"{experiment.name}-{config_hash(experiment)}{replicas}"
    if said and FLAGS.mode in (None, "train"):
        print(said, flush=True)
    from cnn_research.core.distributed import joined

    with joined():
        run(
            experiment,
            workdir,
            mode,
            FLAGS.input,
            profile=FLAGS.profile,
            replicas=FLAGS.replicas,
        )


def saved_experiment(workdir: Path | None) -> Experiment | None:
    """The run's own experiment in `workdir`, where a mode is named, but `train`."""
    if FLAGS.mode in (None, "train") or workdir is None:
        return None
    from cnn_research.core.run_folder import saved_config

    saved = saved_config(workdir)
    if saved is not None and FLAGS.experiment not in (None, saved.name):
        raise UsageError(f"{workdir} holds a run of {saved.name}, not {FLAGS.experiment}")
    return saved


def overridden(default: Experiment, words: list[str]) -> Experiment:
    """The experiment with fields replaced, as typed.

    Args:
        default: the experiment before.
        words: `--optimizer.learning-rate=3e-4`, or flag and value apart.

    Raises:
        UsageError: an unknown field, a wrong type or a bad choice.
    """
    default, words = with_model(default, words)
    fields = {name.replace("_", "-") for name in flatten(default)} - {"name"}
    for word in words:
        name = word.partition("=")[0].removeprefix("--").replace("_", "-")
        known = name in fields or name.replace("no-", "", 1) in fields
        # A boolean field is negated at its last part: --evaluation.no-mirror.
        if word.startswith("--") and not known and word not in _HELP:
            near = did_you_mean(name, [*fields, *LAUNCHER_FLAGS])
            raise UsageError(
                f"{default.name} has no field --{name}{near}; "
                f"`python launch.py --experiment={default.name} --help` shows all"
            )
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                type(default),
                default=default,
                args=words,
                prog=f"launch.py --experiment={default.name}",
                description=_description(default),
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise UsageError(f"{_first_sentence(said.getvalue())}; --help shows all fields") from None


def fitted(default: Experiment, words: list[str]) -> tuple[Experiment, str]:
    """The experiment as typed, with what its data suggest for the fields that are not named.

    Returns:
        It, and what was chosen and why, a line each; empty where its config says all.

    Raises:
        UsageError: as `overridden`, or the data do not suit the experiment.
        UserError: there are no such data.
    """
    experiment = overridden(default, words)
    suggest = registry()[default.name].choices
    if suggest is None:
        return experiment, ""
    choices = suggest(experiment)
    chosen = with_fields(default, {path: choice.value for path, choice in choices.items()})
    experiment = overridden(chosen, words)
    taken = {
        _as_typed(path, choice.value): choice.reason
        for path, choice in choices.items()
        if operator.attrgetter(path)(experiment) == choice.value
    }
    width = max(map(len, taken), default=0)
    lines = [f"  {typed:{width}}  {reason}" for typed, reason in taken.items()]
    return experiment, "\n".join(["Chosen from the data, unless you say otherwise:", *lines])


def _as_typed(path: str, value: Any) -> str:
    """A field and its value as they would be typed; of a part that has fields itself, its kind."""
    flag = "--" + path.replace("_", "-")
    if dataclasses.is_dataclass(value):
        return f"{flag[2:]}: {type(value).__name__}"
    if isinstance(value, bool):
        before, _, last = flag.rpartition(".")
        return flag if value else f"{before}.no-{last}"
    if isinstance(value, tuple):
        return " ".join([flag, *map(str, value)])
    return f"{flag}={value:g}" if isinstance(value, float) else f"{flag}={value}"


def with_model(default: Experiment, words: list[str]) -> tuple[Experiment, list[str]]:
    """The experiment with the network that `--model=NAME` names, and the other words.

    Raises:
        UsageError: no network has that name, or the experiment has none to replace.
    """
    rest, name = [], None
    following = iter(words)
    for word in following:
        flag, given, value = word.partition("=")
        if flag == "--model":
            name = value if given else next(following, "")
        else:
            rest.append(word)
    if name is None:
        return default, words
    if "model" not in {field.name for field in dataclasses.fields(default)}:
        raise UsageError(f"{default.name} has no network: --model does not apply")
    from cnn_research.models.registry import architectures

    models = architectures()
    if name not in models:
        raise UsageError(
            f"no network is named '{name}'{did_you_mean(name, list(models))}; "
            "`python -m cnn_research.models` shows all"
        )
    changes: dict[str, Any] = {"model": models[name].model}
    return dataclasses.replace(default, **changes), rest


def listing() -> str:
    """Every experiment, a line each: name, document, data, what it is."""
    rows = [("experiment", "document", "data", "what")]
    rows += [(e.name, e.document, e.data, e.summary) for e in registry().values()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]])
        for row in rows
    )


def fail(error: UserError) -> None:
    """Says what is wrong in one line, and ends the program."""
    sys.stdout.flush()
    print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
    sys.exit(error.exit_code)


def _description(default: Experiment) -> str:
    entry = registry().get(default.name)
    return (entry.make.__doc__ if entry else None) or type(default).__doc__ or ""


def _first_sentence(box: str) -> str:
    """The message in tyro's box, as one line without the frame and the advice below it."""
    lines = []
    for line in box.splitlines()[1:]:
        text = line.strip("│╭╮╰╯ ")
        if not text.strip("─"):
            break
        lines.append(text)
    return " ".join(" ".join(lines).split()).rstrip(".")
