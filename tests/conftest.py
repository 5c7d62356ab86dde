"""What all tests share."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys

# Before jax is imported. Tests run little of what they compile: optimising it takes longer, and
# without the fusion emitters XLA compiles in a quarter of the time and a fifth of the memory. What
# a test starts in a process of its own inherits this.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
# No test waits for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

import jax  # noqa: E402
import psutil  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

from tests.slurm import slurm  # noqa: E402, F401 (a fixture)

COMPILED_BYTES = 900e6
"""Resident memory from which on a worker gives back what it compiled; imports alone are 600e6."""

usage: dict[str, dict[str, float]] = {}
"""What each worker took, by its name."""


# Memory -------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown():
    """JAX keeps every program that it compiled, for as long as its function or a caller lives."""
    yield
    if psutil.Process().memory_info().rss > COMPILED_BYTES:
        jax.clear_caches()
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)


def used() -> dict[str, float]:
    """Processor seconds and peak resident bytes of this process, and of those it has started."""
    own, started = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": sum(one.ru_utime + one.ru_stime for one in (own, started)),
        "peak_bytes": unit * own.ru_maxrss,
        "peak_bytes_of_started": unit * started.ru_maxrss,
    }


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["used"] = used()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    if "used" in getattr(node, "workeroutput", {}):
        usage[node.gateway.id] = node.workeroutput["used"]


def pytest_terminal_summary(terminalreporter):
    """The figures that benchmarks.test_suite reads."""
    for name, worker in sorted((usage or {"main": used()}).items()):
        terminalreporter.write_line(
            f"{name}: {worker['seconds']:.0f} s of processor time, at most "
            f"{worker['peak_bytes'] / 1e9:.2f} GB resident; what it started, "
            f"{worker['peak_bytes_of_started'] / 1e9:.2f} GB"
        )


# Fixtures -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Runs that go on, and tests of one network, compile the same; that takes longest."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    options = {
        "jax_compilation_cache_dir": str(folder / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in options.items():
            patch.setenv(name.upper(), str(value))  # for what tests start
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session", autouse=True)
def timed_once():
    """The estimate before a run times a call once, not four times: unoptimised, they take long."""
    from cnn_research.train import dry_run

    with pytest.MonkeyPatch.context() as patch:
        measure = dry_run.seconds_of
        patch.setattr(dry_run, "seconds_of", lambda work, times, check: measure(work, 0, check))
        yield


def blank_page(workdir, **unused):
    (workdir / "report").mkdir(exist_ok=True)
    (workdir / "report" / "report.md").write_text("left out")
    return workdir / "report" / "report.html"


@pytest.fixture(scope="module")
def no_report():
    """Runs without their report's page."""
    from cnn_research.train import finish

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "write_report", blank_page)
        yield


@pytest.fixture(scope="module", autouse=True)
def no_pictures(request):
    """Reports with a blank for each plot, except where these are tested: drawing takes longest."""
    if request.node.get_closest_marker("pictures"):
        yield
        return
    from matplotlib.figure import Figure

    def blank(*unused, **options):
        return Figure(figsize=(0.1, 0.1))

    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "report.plots.training_curves",
            "tasks.calibration.reliability_plot",
            "tasks.confusion.confusion_matrix_plot",
            "tasks.class_predictions.confusions_plot",
            "tasks.class_predictions.mistakes_plot",
            "tasks.regression.mistakes_plot",
            "tasks.palette.palettes_plot",
            "tasks.histogram.histograms_plot",
            "tasks.histogram.colour_cube_plot",
        ):
            patch.setattr(f"cnn_research.{name}", blank)
        yield
