"""Exported networks, as `--mode=export` writes them, run with JAX and NumPy alone.

    network = open_export(Path("runs/a/export"))
    network.answers(network(images))

The folder is enough: neither flax nor the run's classes are imported.
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
"""Version of the folder's format; no other is read."""
MODEL = "model.jaxexport"
FACTS = "export.json"
SUMS = "SHA256SUMS"
CALLS = {"shape_assertion"}
"""Allowed external call of the program: JAX's check that there is an image at all."""


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
    """An exported network, with the values of its export.json; call it with images."""

    facts: Mapping[str, Any]
    forward: Callable[[np.ndarray], Any]
    """Its jitted program."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, height, width, channels = self.facts["input"]["shape"]
        return height, width, channels

    @property
    def fit(self) -> Fit:
        """How an image of another shape comes to `image_shape`, as in training."""
        return self.facts["input"]["fit"]

    @property
    def counts_colours(self) -> bool:
        """Whether it answers with an image's own colours: transparent pixels have none."""
        return any(head["kind"] == "palette" for head in self.heads)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Outputs, float32 `[batch, outputs]`, of uint8 images `[batch, height, width, channels]`.

        Compiled once for each batch size; a `ValueError` for images of another shape or dtype.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape or not images.size:
            raise ValueError(
                f"the network takes uint8 images [batch, {self.image_shape}], not {images.dtype} "
                f"{images.shape}"
            )
        return np.asarray(self.forward(images))

    def answers(self, outputs: np.ndarray) -> list[dict[str, list[dict[str, Any]]]]:
        """The outputs of a call for each image, for each head, as `decode` gives them."""
        return [
            {head["name"]: decode(head, row[head["start"] : head["stop"]]) for head in self.heads}
            for row in outputs
        ]

    @property
    def heads(self) -> list[dict[str, Any]]:
        """Description of the outputs of each head."""
        return self.facts["heads"]


def open_export(folder: Path) -> Exported:
    """Open the exported network of a folder, and check every file of it.

    An untrusted program can compute, and nothing else: one that calls what lies outside it, such as
    a function of this process by its address, is not opened. Raises `UserError` if the folder holds
    no export, a damaged one, one of another format, or one that calls more than `CALLS`, or whose
    `FACTS` are not those of a network.
    """
    check(folder)
    program = _read_program(folder / MODEL)
    try:
        text = (folder / FACTS).read_text(encoding="utf-8")
        # NaN, which others may have written, is not JSON and could not be passed on.
        facts = json.loads(text, parse_constant=lambda name: None)
        network = Exported(facts, jax.jit(program.call))
        _check_facts(network, program)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise UserError(
            f"{folder / FACTS} does not describe {MODEL} ({type(error).__name__}: "
            f"{one_line(error)[:200]}): export the run again, with --mode=export"
        ) from None
    return network


def _read_program(file: Path) -> jax.export.Exported:
    """Read a program of JAX's; a `UserError` if that fails, or it makes calls beyond `CALLS`."""
    try:
        program = jax.export.deserialize(bytearray(file.read_bytes()))
    except ImportError as error:
        raise UserError(
            f"{error.name} is missing, by which exports are read: pip install jax flatbuffers"
        ) from None
    except Exception as error:  # of whichever layer of JAX finds it unreadable
        raise UserError(
            f"{file} cannot be read by JAX {jax.__version__}: {one_line(error)[:200]}; "
            "export the run again"
        ) from None
    if outside := _calls(program) - CALLS:
        raise UserError(
            f"{file} calls {', '.join(sorted(outside))} outside itself, which no network needs: "
            "do not use it unless you know who wrote it"
        )
    return program


def _check_facts(network: Exported, program: jax.export.Exported) -> None:
    """Raise a built-in error, of the kind at hand, where the facts do not describe the program."""
    facts = network.facts
    if facts["format"] != FORMAT:
        raise ValueError(f"it has format {facts['format']}, and this version reads {FORMAT}")
    shapes = [[aval.shape[1:] for aval in avals] for avals in (program.in_avals, program.out_avals)]
    if shapes != [[network.image_shape], [(facts["outputs"],)]]:
        raise ValueError("it gives other shapes of images or outputs")
    if network.fit not in typing.get_args(Fit):
        raise ValueError(f"it has the fit '{network.fit}', which there is not")
    if not network.heads or not {"experiment", "step"} <= facts.keys():
        raise ValueError("it lacks heads, experiment or step")
    # Decoding any outputs takes all that a head must have.
    network.answers(np.zeros((1, facts["outputs"]), np.float32))


def _calls(program: jax.export.Exported) -> set[str]:
    """The targets of every custom call in a program."""
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
    """Compare every file with the list of checksums; a `UserError` if it or a file is missing or
    wrong."""
    try:
        sums = dict(_listed((folder / SUMS).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} holds no export (no {SUMS}): write one with --mode=export --workdir=RUN"
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
    """Write the list of checksums of every file in a folder, as `sha256sum` does."""
    files = sorted(file for file in folder.iterdir() if file.name != SUMS)
    lines = [f"{sha256_of(file)}  {file.name}\n" for file in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _listed(text: str) -> Iterator[tuple[str, str]]:
    """(name, sum) of each line; the names are of files in the folder itself."""
    for line in text.splitlines():
        digest, name = line.split(maxsplit=1)
        name = name.removeprefix("*")  # of binary files, where sha256sum tells them apart
        if Path(name).name != name:
            raise ValueError(name)
        yield name, digest
