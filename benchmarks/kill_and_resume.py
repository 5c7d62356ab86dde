"""Kill training runs at random moments, resume them, and compare their results bit for bit.

    python -m benchmarks.kill_and_resume --output results/kill_and_resume.json

One run of digits_cnn is not interrupted. The others are killed with SIGKILL, once or twice each,
and restarted with the same command until they end. As random moments seldom hit a save, every
second kill, on average, waits until the latest checkpoint is partly written. The moments are drawn
from a seed; what they hit depends on the machine.
"""

from __future__ import annotations

import collections
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT, digest, flag, last_checkpoint, measurement, row, rows_of
from cnn_research.train.checkpoint import CHECKSUMS

# Saves every quarter of an epoch, and evaluations of many batches, so that both are hit.
OPTIONS = (
    "--experiment=digits_cnn",
    "--epochs=4",
    "--eval-every-epochs=0.25",
    "--evaluation.batch-size=10",
    "--log-every-steps=5",
)
SEED = 0
PHASES = ("training or evaluation", "save", "report")


class Launch:
    """One process of the launcher, whose output goes to a file."""

    def __init__(self, workdir: Path, said: Path):
        self.checkpoints = workdir / "checkpoints"
        self._said = said
        with said.open("ab") as out:
            self._from = out.tell()
            self.process = subprocess.Popen(
                [sys.executable, "launch.py", *OPTIONS, f"--workdir={workdir}"],
                cwd=ROOT,
                stdout=out,
                stderr=out,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
            )

    def has_said(self, word: bytes) -> bool:
        """Return whether this process, not an earlier one, has printed the word."""
        with self._said.open("rb") as file:
            file.seek(self._from)
            return word in file.read()

    def runs(self) -> bool:
        return self.process.poll() is None

    def wait_for_start(self) -> None:
        """Wait until the model is built, and training starts or resumes."""
        while self.runs() and not self.has_said(b" parameters, "):
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def unfinished(checkpoints: Path) -> bool:
    """Return whether the latest checkpoint is partly written."""
    try:
        # An incomplete one is called STEP.orbax-checkpoint-tmp, or has no checksums yet.
        steps = {int(path.name.split(".")[0]): path for path in checkpoints.iterdir()}
        return bool(steps) and not (steps[max(steps)] / CHECKSUMS).exists()
    except (FileNotFoundError, ValueError):
        return False


def kill_at_moment(launch: Launch, moment: float) -> None:
    """Kill the process `moment` seconds after the start."""
    end = time.monotonic() + moment
    while launch.runs() and time.monotonic() < end:
        time.sleep(0.001)
    launch.kill()


def kill_in_save(launch: Launch, saves: int, moment: float) -> None:
    """Kill the process `moment` seconds into the save after `saves` others."""
    seen, inside = 0, False
    while launch.runs():
        now = unfinished(launch.checkpoints)
        if now and not inside:
            seen += 1
            if seen > saves:
                time.sleep(moment)
                break
        inside = now
        time.sleep(0.0005)
    launch.kill()


def killed_run(workdir: Path, said: Path, rng: random.Random, length: float) -> list[str]:
    """Run to the end with one or two kills; return the phases in which they happened."""
    fell_in = []
    for _ in range(rng.choice((1, 1, 2))):
        aimed, moment = rng.random() < 0.5, rng.random()
        saves = rng.randrange(8)
        launch = Launch(workdir, said)
        launch.wait_for_start()
        if aimed:
            kill_in_save(launch, saves, 0.03 * moment)
        else:
            kill_at_moment(launch, length * moment)
        if launch.process.returncode == 0:
            break
        if unfinished(launch.checkpoints):
            fell_in.append("save")
        elif launch.has_said(b"epoch 4/4 "):
            fell_in.append("report")
        else:
            fell_in.append("training or evaluation")
    finish(workdir, said)
    return fell_in


def finish(workdir: Path, said: Path) -> float:
    """Run to the end without kills; return the seconds from the start of training."""
    launch = Launch(workdir, said)
    launch.wait_for_start()
    begun = time.monotonic()
    if launch.process.wait():
        raise RuntimeError(f"the run failed:\n{said.read_text(errors='replace')[-2000:]}")
    return time.monotonic() - begun


def outcome(workdir: Path) -> dict[str, Any]:
    """Collect what must be equal: the last state, validation rows and metrics of the report."""
    _, state, step = last_checkpoint(workdir)
    return {
        "step": step,
        "parameters": digest(state.params),
        "state": digest(state),
        "validation": rows_of(workdir, "validation"),
        "evaluation": (workdir / "evaluation.json").read_text(),
    }


@measurement(
    flag("--runs", type=int, default=20, help="how many runs are killed"),
    what="training killed with SIGKILL at random moments, then resumed",
    target="the same parameters, bit for bit, as the run that was left alone",
    seeds=[SEED],
)
def main(options):
    rng = random.Random(SEED)
    runs, fell_in = [], collections.Counter()
    with tempfile.TemporaryDirectory() as scratch:
        alone = Path(scratch, "alone")
        length = finish(alone, Path(scratch, "alone.txt"))
        expected = outcome(alone)
        for number in range(options.runs):
            workdir = Path(scratch, f"run{number}")
            kills = killed_run(workdir, workdir.with_suffix(".txt"), rng, length)
            found = outcome(workdir)
            differing = [name for name in expected if found[name] != expected[name]]
            runs.append({"kills": kills, "differing": differing})
            fell_in.update(kills)
            print(f"run {number + 1}: killed in {', '.join(kills) or '-'}; differs in {differing}")
    same = sum("parameters" not in run["differing"] for run in runs)
    rows_same = sum("validation" not in run["differing"] for run in runs)
    identical = sum(not run["differing"] for run in runs)
    kills = sum(fell_in.values())
    rows = [
        row(
            "runs killed with SIGKILL that end with the parameters of an uninterrupted run",
            f"{options.runs} of {options.runs}, bit for bit",
            f"{same} of {options.runs}; {kills} kills, {fell_in['save']} of them in a save",
            same == options.runs and kills >= options.runs / 2 and fell_in["save"] >= 3,
        ),
        row(
            "the same runs' validation rows, optimizer state and test metrics",
            f"{options.runs} of {options.runs} the same",
            f"{identical} of {options.runs}",
            rows_same == identical == options.runs,
        ),
    ]
    figures = {
        "options": OPTIONS,
        "parameters_sha256": expected["parameters"],
        "steps": expected["step"],
        "seconds_left_alone": round(length, 1),
        "kills": {phase: fell_in[phase] for phase in PHASES},
        "runs": runs,
    }
    return rows, figures


if __name__ == "__main__":
    sys.exit(main())
