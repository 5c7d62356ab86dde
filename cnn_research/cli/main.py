"""The command line: absl's flags choose the run, tyro's override the experiment's fields."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from cnn_research.cli.fields import LAUNCHER_FLAGS, with_overrides, with_suggestions
from cnn_research.cli.program import COMMANDS
from cnn_research.cli.run import bind_mode
from cnn_research.core.config import asks_for_help, config_hash, did_you_mean
from cnn_research.core.definitions import import_outside
from cnn_research.core.errors import (
    PROGRAM,
    UsageError,
    UserError,
    one_line,
    print_error,
    run_command,
)
from cnn_research.core.experiment import Entry, Experiment, lookup, registry
from cnn_research.core.memory import use_one_arena
from cnn_research.core.terminal import columns, show, styled, wrapped

flags.DEFINE_multi_string("import", [], "A module or FILE.py of your own to import first.")
flags.DEFINE_string("experiment", None, "Name of a registered experiment.")
flags.DEFINE_string("workdir", None, "Folder of the run; by default, runs/NAME-HASH.")
flags.DEFINE_string("mode", None, "Mode of the run; by default, the first of the experiment.")
flags.DEFINE_string("input", None, "For --mode=predict: a file, a folder, or a pattern of files.")
flags.DEFINE_integer("neighbours", 0, "For --mode=predict: nearest training images to show.")
flags.DEFINE_bool("dry_run", False, "Print the estimated time and memory, and exit.")
flags.DEFINE_bool("profile", False, "Trace a few train steps into WORKDIR/profile/.")
flags.DEFINE_integer("replicas", None, "Number of seeds to train at once, in a folder each.")
flags.DEFINE_integer("folds", None, "Number of folds, each the test split of one training.")
flags.DEFINE_bool("list", False, "List all experiments.")

FLAGS = flags.FLAGS

USAGE = f"""\
usage: {PROGRAM} NAME [--workdir=FOLDER] [--mode=MODE] [--FIELD=VALUE]

  --list                 list all experiments by subject
  --import=FILE.py       first import a file or module of your own that defines
                         experiments or classes
  NAME --help            show an experiment's fields: type, meaning and default;
                         --help=PART those of a part, --help=all all fields
  NAME                   run an experiment (also --experiment=NAME); the same
                         command resumes an interrupted run
  --workdir=FOLDER       folder of the run (default: runs/NAME-HASH, a hash of
                         the fields that differ from the defaults)
  --dry-run              estimate time, memory and steps, and exit
  --mode=train|evaluate  train, or evaluate the run in the workdir and rewrite
                         its report
  --mode=export          export the trained network to files that need only JAX
  --mode=predict --input=IMAGES
                         predict for a file, a folder or 'a/pattern/*.jpg'
  --neighbours=K         with predict: show the K nearest training images
  --profile              trace a few train steps into WORKDIR/profile/
  --replicas=N           train N seeds at once, in WORKDIR/seed-0, ...
  --folds=N              cross-validation: train N times, each with a different
                         N-th of the images as test, in WORKDIR/fold-0, ...
  --FIELD=VALUE          override a field: --optimizer.learning-rate=3e-4
  --model=NAME           train another network; `python -m cnn_research models`
                         lists them
  --pretrained=NAME      start from weights of that list, and set the fields
                         that they need; --pretrained=none trains from scratch
  --budget=MINUTES       image_folder and image_table: training time on two
                         cores (default: 10)

The installed package provides the same program as `cnn-research`. Its other
commands, each with its own --help:

  data      prepare a data set, or list the prepared ones
  models    list the networks and pretrained weights
  report    compare runs in tables and pages
  sweep     run many variants, on this machine or on SLURM
  serve     serve predictions of an exported network over HTTP
  doctor    check this machine
"""

LARGE_BATCH = 150_000
"""Pixels per batch above which one heap for all threads makes steps faster."""
TRAINING_MODES = (None, "train", "run")
"""Modes whose fields come from the command line; other modes read them from the workdir."""


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse absl's flags for `app.run`; return the other words, the experiment's fields."""
    try:
        # absl's own --help does not know the experiment's fields, so `main` prints the help. absl
        # does not allow dashes in names of flags.
        words = [
            word.replace("-run", "_run", 1) if word.partition("=")[0] == "--dry-run" else word
            for word in argv
            if not asks_for_help(word)
        ]
        rest = FLAGS(words, known_only=True)
    except flags.Error as error:
        print_error(UsageError(f"{one_line(error)}; `{PROGRAM} --help` shows all flags"))
        sys.exit(UsageError.exit_code)
    return rest + [word for word in argv if asks_for_help(word)][:1]


def main(argv: Sequence[str]) -> None:
    """List, explain or run an experiment; end the program unless the exit code is 0."""
    if not FLAGS["verbosity"].present:
        # Orbax logs every step of every save; --verbosity=0 shows it.
        logging.set_verbosity(logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A folder's name may be invalid text, which must not end a run when it is printed.
        sys.stdout.reconfigure(errors="backslashreplace")
    if code := run_command(launch, argv[1:]):
        sys.exit(code)


def launch(words: list[str]) -> None:
    """Run the command with the words that absl did not parse: the experiment's name, unless given
    by `--experiment`, overrides of fields, and optionally `--help`."""
    for name in FLAGS["import"].value or ():
        import_outside(name)
    workdir = Path(FLAGS.workdir) if FLAGS.workdir else None
    if FLAGS.list:
        print_list()
        return
    if FLAGS.experiment is None and words and not words[0].startswith("-"):
        name, words = words[0], words[1:]
        if name not in registry():
            near = did_you_mean(name, [*registry(), *COMMANDS])
            raise UsageError(
                f"no experiment or command is named '{name}'{near}; `{PROGRAM} --list` shows all "
                "experiments"
            )
        FLAGS.experiment = name  # type: ignore[assignment]
    saved = saved_experiment(workdir)
    if saved is None and FLAGS.experiment is None:
        if not any(map(asks_for_help, words)):
            raise nothing_to_run(words, workdir)
        print(USAGE, end="")
        return
    if FLAGS.dry_run and FLAGS.mode not in TRAINING_MODES:
        raise UsageError(f"--dry-run estimates a training: omit --mode={FLAGS.mode}")
    if saved is not None:
        default, suggested = saved, ""
        experiment = with_overrides(saved, words)
    else:
        default = lookup(FLAGS.experiment).experiment()
        experiment, suggested = with_suggestions(default, words)
    call = bind_mode(
        experiment,
        "dry-run" if FLAGS.dry_run else FLAGS.mode,
        FLAGS.input,
        neighbours=FLAGS.neighbours,
        profile=FLAGS.profile,
        replicas=FLAGS.replicas,
        folds=FLAGS.folds,
    )
    if workdir is None:
        several = f"-replicas{FLAGS.replicas}" if FLAGS.replicas else ""
        several += f"-folds{FLAGS.folds}" if FLAGS.folds else ""
        workdir = Path("runs") / f"{experiment.name}-{config_hash(experiment, default)}{several}"
    if suggested and FLAGS.mode in TRAINING_MODES:
        show(suggested)
    from cnn_research.core.distributed import initialize_distributed
    from cnn_research.core.run_folder import choices_recorded

    if has_large_batches(experiment):
        use_one_arena()  # before JAX starts its threads
    with initialize_distributed(), choices_recorded(suggested):
        call(workdir)


def has_large_batches(experiment: Experiment) -> bool:
    """Estimate from the pixels of a batch whether train steps need blocks above 64 MB."""
    augmentation, data = (getattr(experiment, part, None) for part in ("augmentation", "data"))
    sizes = getattr(augmentation, "size", ()), getattr(data, "image_size", ())
    height, width, *_ = next(filter(None, (*sizes, getattr(data, "image_shape", ()))), (32, 32))
    return getattr(experiment, "batch_size", 0) * height * width > LARGE_BATCH


def saved_experiment(workdir: Path | None) -> Experiment | None:
    """Read the experiment saved in `workdir` for modes other than training; None without one."""
    if FLAGS.mode in (None, "train") or workdir is None:
        return None
    from cnn_research.core.run_folder import saved_config

    saved = saved_config(workdir)
    if saved is not None and FLAGS.experiment not in (None, saved.name):
        raise UsageError(f"{workdir} has a run of {saved.name}, not of {FLAGS.experiment}")
    return saved


def nothing_to_run(words: list[str], workdir: Path | None) -> UserError:
    """Create the error for a command without an experiment or the folder of a run."""
    for word in words:
        name = word.partition("=")[0].removeprefix("--")
        near = did_you_mean(name, list(LAUNCHER_FLAGS))
        if near:
            return UsageError(f"unknown flag --{name}{near}")
    if FLAGS.mode in TRAINING_MODES:
        return UsageError(f"name the experiment: `{PROGRAM} NAME`; `{PROGRAM} --list` shows all")
    if workdir is None:
        return UsageError(f"--mode={FLAGS.mode} needs --workdir=FOLDER, the folder of a run")
    return UserError(f"{workdir} is not a run folder (it has no config.json): check --workdir")


def print_list() -> None:
    """Print all experiments by subject: the first line of each module, then its experiments."""
    modules: dict[str, list[Entry]] = {}
    for entry in registry().values():
        modules.setdefault(entry.make.__module__, []).append(entry)
    for module, entries in modules.items():
        subject, _, _ = (sys.modules[module].__doc__ or module).partition("\n")
        print(styled(wrapped(subject, columns(sys.stdout)), "bold"))
        width = max(len(each.name) for each in entries)
        show("\n".join(f"  {each.name:{width}}  {each.summary}" for each in entries) + "\n")
    show(f"`{PROGRAM} NAME` runs an experiment, `{PROGRAM} NAME --help` describes it.")
