"""Check this machine, with advice on all faults.

usage: python -m cnn_research doctor

It checks Python, the packages, the devices, free memory, free disk space and
the prepared data. The exit code is 0 if experiments can run, otherwise 1.
"""

from __future__ import annotations

import configparser
import contextlib
import importlib
import math
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from cnn_research.core.errors import (
    IN_CHECKOUT,
    UserError,
    install_command,
    only_help,
    run_command,
)
from cnn_research.core.files import free_bytes, nearest_existing
from cnn_research.core.terminal import show

MIN_MEMORY, MIN_DISK = 2e9, 5e9
"""Bytes required by most experiments."""
INSTALL = "pip install -c constraints.txt -e ." if IN_CHECKOUT else "pip install cnn-research"
NAMED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")
IMPORTED = ("numpy", "absl", "jax", "flax", "optax", "orbax.checkpoint", "cnn_research.train.loop")
"""Modules imported by experiments, in order of their dependencies."""
EXTRAS = {
    "pretrained": "weights pretrained on photographs",
    "serve": "predictions over HTTP",
    "onnx": "exports for ONNX Runtime",
    "search": "hyperparameter search",
    "slurm": "sweeps on SLURM",
}
FINE, WARNING, BROKEN = "ok", "note", "FAULT"

Finding = tuple[str, str, str]
"""Status, subject and a line of text."""

# Imports are inside functions, as the command must work without any installed package.


def main(words: Sequence[str] = ()) -> int:
    """Print one line per finding; return 1 if experiments cannot run."""
    if words:
        return only_help(words, __doc__)
    broken = 0
    for status, subject, text in findings():
        broken += status == BROKEN
        show(f"{status:5}  {subject:8}  {text}")
    print("Experiments cannot run yet." if broken else "Experiments can run.")
    return 1 if broken else 0


def findings() -> Iterator[Finding]:
    """Yield all findings, the most important first."""
    yield FINE, "Python", f"{platform.python_version()} in {sys.prefix}"
    needed = list(packages())
    yield from needed
    if faults := list(imports()):
        # Missing packages are already reported; the other checks need the imports.
        if all(status != BROKEN for status, *_ in needed):
            yield from faults
        return
    yield from extras()
    from cnn_research.data.prepare import cache

    home = cache.data_dir()
    yield from devices()
    yield memory()
    yield disk("runs", Path("runs"), "--workdir")
    yield disk("data", home, "TFDS_DATA_DIR")
    yield data(home)


def packages() -> Iterator[Finding]:
    """Yield required packages that are missing or too old, and the versions of the main ones."""
    if installed("cnn-research") is None:
        yield WARNING, "packages", f"cnn-research itself is not installed: {INSTALL}"
    try:
        faults = unmet(requirements())
    except ImportError:  # packaging, which is installed with the others
        faults = ["required packages are not installed"]
    for fault in faults:
        yield BROKEN, "packages", f"{fault}: {INSTALL}"
    if not faults:
        yield FINE, "packages", ", ".join(f"{name} {installed(name)}" for name in NAMED)


def requirements() -> list[str]:
    """Read the requirements of the project and its extras, from setup.cfg if not installed."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.requires("cnn-research") or []
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(Path(__file__).parents[2] / "setup.cfg", encoding="utf-8")
    listed = setup.get("options", "install_requires", fallback="").split("\n")
    if setup.has_section("options.extras_require"):
        for extra, texts in setup.items("options.extras_require"):
            listed += [f'{text}; extra == "{extra}"' for text in texts.split("\n") if text]
    return [text for text in listed if text]


def unmet(texts: list[str], extra: str = "") -> list[str]:
    """Describe each unmet requirement of an extra, or of the project itself."""
    from packaging.requirements import Requirement

    faults = []
    for needed in map(Requirement, texts):
        if needed.marker.evaluate({"extra": extra}) if needed.marker else not extra:
            version = installed(needed.name)
            if version is None or version not in needed.specifier:
                name = f"{needed.name}{needed.specifier}"
                faults.append(f"{name} is required, but {version or 'none'} is installed")
    return faults


def installed(name: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None


def imports() -> Iterator[Finding]:
    """Yield modules that fail to import although they may be installed, once per reason."""
    reasons: dict[str, str] = {}
    for module in IMPORTED:
        try:
            importlib.import_module(module)
        except Exception as error:  # packages may raise anything
            reasons.setdefault(short(error), module.split(".")[0])
    for reason, name in reasons.items():
        yield BROKEN, "packages", f"{name} does not import ({reason}): {INSTALL} --force-reinstall"


def extras() -> Iterator[Finding]:
    absent = []
    with contextlib.suppress(ImportError):  # packaging, as reported by `packages`
        absent = [extra for extra in EXTRAS if unmet(requirements(), extra)]
    if absent:
        listed = ", ".join(f"{extra} ({EXTRAS[extra]})" for extra in absent)
        command = install_command(*absent)
        yield WARNING, "extras", f"optional, not installed: {listed}: {command}"


def devices() -> Iterator[Finding]:
    from cnn_research.core.run_folder import cores

    try:
        import jax
        import jax.numpy as jnp

        from cnn_research.core.distributed import start_devices

        start_devices()
        available = jax.devices()
        right = float(jax.jit(lambda x: (x @ x).sum())(jnp.ones((64, 64)))) == 64.0**3
    except UserError as error:
        yield BROKEN, "devices", str(error)
        return
    except Exception as error:  # drivers may raise anything
        yield BROKEN, "devices", f"JAX cannot compute ({short(error)})"
        return
    kinds = ", ".join(sorted({device.device_kind for device in available}))
    text = f"{len(available)} {jax.default_backend()} ({kinds}); {cores()} processor cores"
    yield (FINE, "devices", text) if right else (BROKEN, "devices", f"{text}: wrong results")
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi"):
        advice = (
            f"an NVIDIA driver is installed, but JAX does not use it: {install_command('cuda')}"
        )
        yield WARNING, "devices", advice


def short(error: Exception) -> str:
    """Return the first line of an error's message, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def memory() -> Finding:
    from cnn_research.core.memory import available_memory

    free = available_memory()
    if math.isinf(free):
        return FINE, "memory", "this system does not report available memory"
    text = f"{free / 1e9:.1f} GB free"
    if free < MIN_MEMORY:
        return WARNING, "memory", f"{text}: use small batches, or close other programs"
    return FINE, "memory", text


def disk(subject: str, folder: Path, option: str) -> Finding:
    """Check the free space for runs or data; `option` chooses another folder."""
    existing, free = nearest_existing(folder), free_bytes(folder)
    text = f"{folder}: {free / 1e9:.1f} GB free"
    if not os.access(existing, os.W_OK):
        return BROKEN, subject, f"{folder} is not writable: choose another folder with {option}"
    if free < MIN_DISK:
        return WARNING, subject, f"{text}: choose another folder with {option}"
    return FINE, subject, text


def data(home: Path) -> Finding:
    """List data sets prepared by `python -m cnn_research.data prepare`."""
    prepared = [*home.glob("*/*/arrays"), *home.glob("*/*/*/arrays")]
    if names := sorted({path.relative_to(home).parts[0] for path in prepared}):
        return FINE, "prepared", ", ".join(names)
    advice = "digits_cnn runs without; `python -m cnn_research.data prepare --help`"
    return WARNING, "prepared", f"no data yet: {advice}"


if __name__ == "__main__":
    sys.exit(run_command(main))
