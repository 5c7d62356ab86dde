"""What all tests share."""

from __future__ import annotations

import os

# Before jax is imported. Tests run little of what they compile: optimising it takes longer. What a
# test starts in a process of its own inherits this.
FLAGS = "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

from tests.slurm import slurm  # noqa: E402, F401 (a fixture)


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
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def no_pictures():
    """Reports without matplotlib, which would take most of the time."""
    from cnn_research.train import finish

    def page(workdir, **unused):
        (workdir / "report").mkdir(exist_ok=True)
        (workdir / "report" / "report.md").write_text("left out")
        return workdir / "report" / "report.html"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "write_report", page)
        yield
