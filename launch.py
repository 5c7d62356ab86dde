"""Runs a registered experiment: `python launch.py --experiment=NAME [--FIELD=VALUE ...]`."""

from absl import app, flags

from cnn_research.cli.main import main, parse_flags

flags.DEFINE_string("experiment", None, "Name of a registered experiment.")
flags.DEFINE_string("workdir", None, "Folder of the run; runs/NAME-HASH where none is given.")
flags.DEFINE_string("mode", None, "What to do; where none is given, the first that it has.")
flags.DEFINE_string("input", None, "For --mode=predict: a file, a folder, or a pattern of files.")
flags.DEFINE_integer("neighbours", 0, "For --mode=predict: show so many nearest training images.")
flags.DEFINE_bool("dry_run", False, "Say what a run will take, and stop before its first step.")
flags.DEFINE_bool("profile", False, "Trace a few train steps into WORKDIR/profile/.")
flags.DEFINE_integer("replicas", None, "Train so many seeds at once, in a folder each.")
flags.DEFINE_bool("list", False, "List every experiment.")

if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
