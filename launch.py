"""Runs a registered experiment: `python launch.py --experiment=NAME [--FIELD=VALUE ...]`."""

from absl import app, flags

from cnn_research.cli.main import main, parse_flags

flags.DEFINE_string("experiment", None, "Name of a registered experiment.")
flags.DEFINE_string("workdir", None, "Folder of the run; by default, runs/NAME-HASH.")
flags.DEFINE_string("mode", None, "Mode of the run; by default, the first of the experiment.")
flags.DEFINE_string("input", None, "For --mode=predict: a file, a folder, or a pattern of files.")
flags.DEFINE_integer("neighbours", 0, "For --mode=predict: nearest training images to show.")
flags.DEFINE_bool("dry_run", False, "Print the estimated time and memory, and exit.")
flags.DEFINE_bool("profile", False, "Trace a few train steps into WORKDIR/profile/.")
flags.DEFINE_integer("replicas", None, "Number of seeds to train at once, in a folder each.")
flags.DEFINE_integer("folds", None, "Number of trainings, each with another part as its test.")
flags.DEFINE_bool("list", False, "List every experiment.")

if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
