"""A real SLURM of two nodes on this machine, for tests: started in a folder of its own, and ended.

A test that takes the fixture `slurm` is skipped where it is not installed
(`apt-get install --no-install-recommends slurm-wlm munge`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
START_SECONDS = 60
"""A cluster is up in two seconds where the machine is not busy."""

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# Without `cred_expire` a job that is queued again waits for two minutes.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# What the nodes say of themselves is not true: both have the machine's processors.
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[0]} CPUs={cpus}
NodeName={host}-2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=off
"""


@dataclasses.dataclass(frozen=True)
class Slurm:
    """A cluster that runs: partitions `main` and `urgent`, whose jobs take the place of main's.

    Attributes:
        folder: its configuration, logs and state.
        nodes: their names.
        cpus: that each node has.
    """

    folder: Path
    nodes: tuple[str, str]
    cpus: int

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to speak to this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def command(self, *words: str) -> str:
        """What a command of SLURM says: `command("squeue", "--noheader")`.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        return subprocess.run(
            words,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    def waiting(self) -> list[str]:
        """The states of all jobs that are not over."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        states = self.command("squeue", "--noheader", "--array", "--format=%T").split()
        return [state for state in states if state not in ended]


@contextlib.contextmanager
def running_slurm(cpus: int = 2) -> Iterator[Slurm]:
    """Starts a cluster, and ends it with every job that it still has.

    Args:
        cpus: of each of the two nodes, however many the machine has.

    Raises:
        RuntimeError: it did not start; says where its logs are.
    """
    # Not below pytest's own folder: MUNGE wants one that every user may enter.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    host = socket.gethostname().partition(".")[0]
    controller_port, *ports = free_ports(3)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    (folder / "state").mkdir()
    for node in (host, f"{host}-2"):
        (folder / f"spool.{node}").mkdir()
    (folder / "slurm.conf").write_text(
        CONFIG.format(
            folder=folder,
            host=host,
            user=getpass.getuser(),
            controller_port=controller_port,
            ports=ports,
            cpus=cpus,
        )
    )
    cluster = Slurm(folder, (host, f"{host}-2"), cpus)
    munge = [
        "munged",
        *("--foreground", "--force", "--num-threads=2", f"--key-file={key}"),
        *(f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid"),
        *(f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munge.log"),
    ]
    programs: list[subprocess.Popen] = []

    def start(name: str, words: list[str]) -> None:
        with (folder / f"{name}.out").open("wb") as said:
            programs.append(
                subprocess.Popen(
                    words,
                    env=os.environ | cluster.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    # A Ctrl-C is for the tests: they end the cluster.
                    start_new_session=True,
                )
            )

    def up(what: str, found) -> None:
        until = time.monotonic() + START_SECONDS
        while not found():
            ended = [program.args for program in programs if program.poll() is not None]
            if ended or time.monotonic() > until:
                raise RuntimeError(f"SLURM did not start ({what}; {ended or 'too slow'}): {folder}")
            time.sleep(0.05)

    try:
        start("munged", munge)
        up("munged", lambda: (folder / "munge.socket").exists())
        start("slurmctld", ["slurmctld", "-D"])
        for node in cluster.nodes:
            start(f"slurmd.{node}", ["slurmd", "-D", "-N", node])
        up("nodes", lambda: _idle(cluster) == 2)
        yield cluster
    except BaseException:
        _end(cluster, programs)
        raise
    _end(cluster, programs)
    shutil.rmtree(folder, ignore_errors=True)


def _idle(cluster: Slurm) -> int:
    """How many nodes could take a job."""
    try:
        said = cluster.command("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T")
    except (subprocess.SubprocessError, OSError):
        return 0
    return said.split().count("idle")


def _end(cluster: Slurm, programs: list[subprocess.Popen]) -> None:
    """Cancels what runs, then ends the daemons, the last one first, by their process ids."""
    with contextlib.suppress(subprocess.SubprocessError, OSError):
        cluster.command("scancel", "--user", getpass.getuser())
        until = time.monotonic() + 20
        while cluster.waiting() and time.monotonic() < until:
            time.sleep(0.1)
    for program in reversed(programs):
        program.terminate()
        try:
            program.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGKILL)
            program.wait(20)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with contextlib.ExitStack() as sockets:
        taken = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for each in taken:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in taken]


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A cluster that runs, to which the test's own process and its children speak."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"SLURM is not installed ({missing[0]} is missing)")
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons start jobs as root only")
    with running_slurm() as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        yield cluster
