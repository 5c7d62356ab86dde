"""What works on this machine, and what to do about the rest: `python -m cnn_research.doctor`.

Ends with 0 if experiments can run, else with 1.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from cnn_research.data import cache
from cnn_research.estimate import available_memory
from cnn_research.workdir import cores

LEAST_MEMORY, LEAST_DISK = 2e9, 5e9
"""Bytes that most experiments need."""
NAMED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")
FINE, WARNING, BROKEN = "ok", "note", "FAULT"

Finding = tuple[str, str, str]
"""How it is, what was looked at, and what was found."""


def main() -> int:
    """Says every finding, a line each."""
    broken = 0
    for how, what, found in findings():
        broken += how == BROKEN
        print(f"{how:5}  {what:8}  {found}", flush=True)
    print("Experiments cannot run yet." if broken else "Experiments can run.")
    return 1 if broken else 0


def findings() -> Iterator[Finding]:
    """In the order in which they matter."""
    yield FINE, "Python", f"{platform.python_version()} in {sys.prefix}"
    yield from packages()
    yield from devices()
    yield memory()
    for what, folder in (("runs", Path("runs")), ("data", cache.data_dir())):
        yield disk(what, folder)
    yield data()


def packages() -> Iterator[Finding]:
    """Required packages that are absent or of another version, and the versions of some others."""
    from packaging.requirements import Requirement

    faults = 0
    for text in metadata.requires("cnn-research") or []:
        needed = Requirement(text)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None or version not in needed.specifier:
            faults += 1
            found = f"{needed} is needed, and {version or 'none'} is installed"
            yield BROKEN, "packages", f"{found}: pip install -c constraints.txt -e ."
    if not faults:
        yield FINE, "packages", ", ".join(f"{name} {metadata.version(name)}" for name in NAMED)


def devices() -> Iterator[Finding]:
    """What JAX computes on, and whether it does."""
    try:
        import jax
        import jax.numpy as jnp

        found = jax.devices()
        right = float(jax.jit(lambda x: (x @ x).sum())(jnp.ones((64, 64)))) == 64.0**3
    except Exception as error:  # whatever a driver may do
        yield BROKEN, "devices", f"JAX does not compute ({str(error).splitlines()[0]})"
        return
    kinds = ", ".join(sorted({device.device_kind for device in found}))
    text = f"{len(found)} {jax.default_backend()} ({kinds}); {cores()} processor cores"
    yield (FINE, "devices", text) if right else (BROKEN, "devices", f"{text}: wrong results")
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi"):
        yield (
            *(WARNING, "devices"),
            "there is an NVIDIA driver, and JAX does not use it: pip install -e '.[cuda]'",
        )


def memory() -> Finding:
    """Of the machine, for processes."""
    free = available_memory()
    text = f"{free / 1e9:.1f} GB free"
    if free < LEAST_MEMORY:
        return WARNING, "memory", f"{text}: take small batches, or close other programs"
    return FINE, "memory", text


def disk(what: str, folder: Path) -> Finding:
    """Where runs or data are written."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{folder}: {free / 1e9:.1f} GB free"
    variable = "--workdir" if what == "runs" else "TFDS_DATA_DIR"
    if not os.access(there, os.W_OK):
        return BROKEN, what, f"{folder} cannot be written: name another folder with {variable}"
    if free < LEAST_DISK:
        return WARNING, what, f"{text}: name another folder with {variable}"
    return FINE, what, text


def data() -> Finding:
    """What `python -m cnn_research.data prepare` has prepared."""
    home = cache.data_dir()
    found = [*home.glob("*/*/dataset_info.json"), *home.glob("*/*/*/dataset_info.json")]
    names = sorted({path.relative_to(home).parts[0] for path in found})
    if names:
        return FINE, "prepared", ", ".join(names)
    return (
        *(WARNING, "prepared"),
        "no data yet: digits_cnn runs without; `python -m cnn_research.data prepare --help`",
    )


if __name__ == "__main__":
    sys.exit(main())
