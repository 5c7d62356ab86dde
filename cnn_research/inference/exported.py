"""Run networks exported by `--mode=export` with JAX and NumPy alone.

    network = open_export("runs/a/export")
    network.answers(network(images))

Only the folder is needed; neither flax nor the run's classes are imported.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from cnn_research.core.errors import UserError, one_line
from cnn_research.core.files import sha256_of
from cnn_research.data.images import Fit
from cnn_research.tasks.decode import decode

FORMAT = 2
"""Version of the folder's format; others cannot be read."""
MODEL = "model.jaxexport"
FACTS = "export.json"
SUMS = "SHA256SUMS"
CALLS = {"shape_assertion"}
"""External calls that a program may contain: JAX's check that there is at least one image."""


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
    """An exported network, to be called with images."""

    facts: Mapping[str, Any]
    """The values of export.json."""
    forward: Callable[[np.ndarray], Any]
    """The jitted program."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, height, width, channels = self.facts["input"]["shape"]
        return height, width, channels

    @property
    def fit(self) -> Fit:
        """How images are resized to `image_shape`, as in training."""
        return self.facts["input"]["fit"]

    @property
    def counts_colours(self) -> bool:
        """Whether predictions are colours of the image, so that transparent pixels are ignored."""
        return any(head["kind"] == "palette" for head in self.heads)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute outputs, float32 `[batch, outputs]`, of uint8 `[batch, height, width, channels]`.

        Compiles once per batch size. Raises `ValueError` for images of another shape or dtype.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape or not images.size:
            raise ValueError(
                f"the network needs uint8 images [batch, {self.image_shape}], not {images.dtype} "
                f"{images.shape}"
            )
        return np.asarray(self.forward(images))

    def answers(self, outputs: np.ndarray) -> list[dict[str, list[dict[str, Any]]]]:
        """Decode the outputs of a call, for each image and head, by `decode`."""
        return [
            {head["name"]: decode(head, row[head["start"] : head["stop"]]) for head in self.heads}
            for row in outputs
        ]

    @property
    def heads(self) -> list[dict[str, Any]]:
        """Description of the outputs of each head."""
        return self.facts["heads"]


def open_export(folder: str | Path) -> Exported:
    """Open the exported network in a folder, and verify its files.

    Even an untrusted program can only compute: one with external calls, such as a function of this
    process by its address, is rejected. Raises `UserError` if the folder contains no export, or one
    that is damaged, of another format, or calls more than `CALLS`, or if `FACTS` do not describe
    the network.
    """
    folder = Path(folder)
    check(folder)
    program = _read_program(folder / MODEL)
    try:
        text = (folder / FACTS).read_text(encoding="utf-8")
        # NaN, which other programs may write, is not JSON and could not be sent to clients.
        facts = json.loads(text, parse_constant=lambda name: None)
        network = Exported(facts, jax.jit(program.call))
        _check_facts(network, program)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise UserError(
            f"{folder / FACTS} does not describe {MODEL} ({type(error).__name__}: "
            f"{one_line(error)[:200]}): export the run again with --mode=export"
        ) from None
    return network


def _read_program(file: Path) -> jax.export.Exported:
    """Read a JAX program; raise `UserError` if that fails, or it calls more than `CALLS`."""
    try:
        program = jax.export.deserialize(bytearray(file.read_bytes()))
    except ImportError as error:
        raise UserError(
            f"{error.name} is needed to read exports: pip install jax flatbuffers"
        ) from None
    except Exception as error:  # of any of JAX's layers
        raise UserError(
            f"{file} cannot be read by JAX {jax.__version__}: {one_line(error)[:200]}; "
            "export the run again"
        ) from None
    if outside := _calls(program) - CALLS:
        raise UserError(
            f"{file} calls external functions ({', '.join(sorted(outside))}), which no network "
            "needs: do not use it unless you trust its author"
        )
    return program


def _check_facts(network: Exported, program: jax.export.Exported) -> None:
    """Raise a built-in error of any kind if the facts do not describe the program."""
    facts = network.facts
    if facts["format"] != FORMAT:
        raise ValueError(f"it has format {facts['format']}, but this version reads {FORMAT}")
    shapes = [[aval.shape[1:] for aval in avals] for avals in (program.in_avals, program.out_avals)]
    if shapes != [[network.image_shape], [(facts["outputs"],)]]:
        raise ValueError("shapes of images or outputs differ")
    if network.fit not in typing.get_args(Fit):
        raise ValueError(f"unknown fit '{network.fit}'")
    if not network.heads or not {"experiment", "step"} <= facts.keys():
        raise ValueError("heads, experiment or step are missing")
    # Decoding needs all fields of a head.
    network.answers(np.zeros((1, facts["outputs"]), np.float32))


def _calls(program: jax.export.Exported) -> set[str]:
    """Collect the targets of all custom calls in a program."""
    from jax.interpreters import mlir
    from jaxlib.mlir import ir

    targets = set()

    def note(operation: Any) -> Any:
        if operation.name.endswith("custom_call"):
            targets.add(ir.StringAttr(operation.attributes["call_target_name"]).value)
        return ir.WalkResult.ADVANCE

    with mlir.make_ir_context():
        program.mlir_module(serialized=False).operation.walk(note)
    return targets


def check(folder: Path) -> None:
    """Verify the checksums of all files; raise `UserError` if any is damaged or missing."""
    try:
        sums = dict(_listed((folder / SUMS).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} contains no export (no {SUMS}): write one with --mode=export --workdir=RUN"
        ) from None
    except ValueError:
        raise UserError(f"{folder / SUMS} is damaged: export the run again") from None
    for name in sorted({MODEL, FACTS} - sums.keys()):
        raise UserError(f"{folder / SUMS} does not list {name}: export the run again")
    for name, expected in sums.items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{file} is missing: copy or export the folder again")
        if sha256_of(file) != expected:
            raise UserError(
                f"{file} is damaged (its checksum differs from {SUMS}): copy or export the folder "
                "again"
            )


def write_sums(folder: Path) -> None:
    """Write the checksums of all files in a folder in the format of `sha256sum`."""
    files = sorted(file for file in folder.iterdir() if file.name != SUMS)
    lines = [f"{sha256_of(file)}  {file.name}\n" for file in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _listed(text: str) -> Iterator[tuple[str, str]]:
    """Yield (name, checksum) of each line; names must be of files in the folder itself."""
    for line in text.splitlines():
        digest, name = line.split(maxsplit=1)
        name = name.removeprefix("*")  # some versions of sha256sum mark binary files
        if Path(name).name != name:
            raise ValueError(name)
        yield name, digest
