"""The SLURM that other tests speak to: its nodes take jobs, and partitions come before others."""

from __future__ import annotations

import time

import pytest


@pytest.mark.slow
def test_both_nodes_run_what_they_are_given(slurm, tmp_path):
    said = tmp_path / "said.txt"
    for node in slurm.nodes:
        wrap = f"--wrap=echo $SLURMD_NODENAME >> {said}"
        slurm.command("sbatch", f"--nodelist={node}", "--output=/dev/null", wrap)
    until = time.monotonic() + 60
    while slurm.waiting() and time.monotonic() < until:
        time.sleep(0.1)
    assert sorted(said.read_text().split()) == sorted(slurm.nodes)
