"""A server of exports in a process of its own, requests to it, and ones that nobody should send."""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.results import ROOT
from cnn_research.inference.exported import FACTS, FORMAT, MODEL, write_sums

Answer = tuple[int, dict[str, Any]]
"""The status, and the JSON values; 0 where the client itself ended the connection."""


# Exports and servers -----------------------------------------------------------------------------


def write_export(
    folder: Path,
    forward: Callable[[Any], Any],
    image_shape: tuple[int, int, int],
    heads: Sequence[Mapping[str, Any]],
    fit: str = "stretch",
) -> Path:
    """An export of a function from uint8 images to outputs; returns its folder."""
    import jax
    import jax.export
    import jax.numpy as jnp

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.uint8)
    exported = jax.export.export(jax.jit(forward), platforms=("cpu", "cuda", "tpu"))(images)
    folder.mkdir(parents=True)
    (folder / MODEL).write_bytes(exported.serialize())
    facts = {
        "format": FORMAT,
        "experiment": folder.name,
        "input": {"dtype": "uint8", "shape": ["batch", *image_shape], "fit": fit},
        "outputs": heads[-1]["stop"],
        "heads": list(heads),
        "step": 0,
        "figures": {},
    }
    (folder / FACTS).write_text(json.dumps(facts))
    write_sums(folder)
    return folder


class Server:
    """`python -m cnn_research serve` in a process of its own, on a free port."""

    def __init__(self, export: Path, *options: str):
        command = [sys.executable, "-m", "cnn_research", "serve", str(export), "--port=0", *options]
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115, it lives as long as the server
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=self._said, text=True, env=os.environ
        )
        assert self.process.stdout is not None
        found = re.search(r":(\d+) ", self.process.stdout.readline())
        if found is None:
            self.process.wait()
            raise RuntimeError(f"the server did not start: {self.errors()}")
        self.port = int(found[1])

    def errors(self) -> str:
        """What it has written to stderr."""
        self._said.seek(0)
        return self._said.read()

    def resident(self) -> int:
        """Its memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]

    def cpu_seconds(self) -> float:
        """What its process has had of the processors."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def get(self, path: str) -> Any:
        return exchange(self.port, request(method="GET", path=path))[1]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Asks it to end; its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *unused: object) -> None:
        if self.process.poll() is None:
            self.end()


# Requests ----------------------------------------------------------------------------------------


def request(
    body: bytes = b"", *, method: str = "POST", path: str = "/predict", **headers: str
) -> bytes:
    """A request as it goes over the wire; `content_length` and others may be lies."""
    given = {"host": "127.0.0.1", "content_length": str(len(body)), **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in given.items() if value]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + body


def form(*files: tuple[str, bytes]) -> bytes:
    """A request with these files, each a name and its content."""
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="%b"\r\n\r\n%b\r\n'
        % (name.encode(), content)
        for name, content in files
    ]
    return request(b"".join([*parts, b"--b--\r\n"]), content_type="multipart/form-data; boundary=b")


def exchange(port: int, sent: bytes, *, cut: bool = False) -> Answer:
    """Sends a request and reads the answer.

    Args:
        port: of the server.
        sent: the request.
        cut: closes the connection at once instead of reading.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        # An answer may come while there is still something to send, and the connection end with it.
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        if cut:
            return 0, {}
        answer = http.client.HTTPResponse(connection, method=sent.split(b" ")[0].decode())
        answer.begin()
        text = answer.read()
        if answer.status in (429, 503) and not answer.headers["Retry-After"]:
            raise RuntimeError("an answer of overload without Retry-After")
        return answer.status, json.loads(text)


def encoded(image: np.ndarray, kind: str = "png", **options: Any) -> bytes:
    """uint8 `[height, width, 3]` as a file of that kind."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def noise(image_shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """uint8 of that shape."""
    return np.random.default_rng(seed).integers(0, 256, image_shape, np.uint8)


@functools.cache
def hostile() -> dict[str, tuple[bytes, set[int]]]:
    """Per kind a request that nobody should send, and the statuses to expect; none: it is cut."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "png")
    huge = buffer.getvalue()
    picture = noise((64, 64, 3), 0)
    png, jpeg = encoded(picture), encoded(picture, "jpeg", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    chunked = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    text = {"content_type": "multipart/form-data; boundary=b"}
    field = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b--\r\n'
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) print\n%%EOF\n"
    return {
        "text": (request(b"no image"), {400}),
        "a text file in a form": (form(("a.png", b"no image")), {400}),
        "a path as a name": (form(("../../etc/passwd", b"no image")), {400}),
        "an empty body": (request(), {400}),
        "an empty form": (request(b"--b--\r\n", **text), {400}),
        "an empty file": (form(("a.png", b"")), {400}),
        "a form without files": (request(field, **text), {400}),
        "a form without boundary": (request(field, content_type="multipart/form-data"), {400}),
        "a form cut short": (request(field[:40], **text), {400}),
        "a form in no encoding": (
            request(field, content_type="multipart/form-data; boundary=b; charset=undefined"),
            {400},
        ),
        "1,000 parts": (form(*[("a.png", png)] * 1000), {400}),
        "one good image and a bad one": (form(("a.png", png), ("b.png", png[:99])), {400}),
        "1 GB claimed": (request(content_length="1000000000"), {413}),
        "a length that is no number": (request(content_length="9" * 5000), {400}),
        "20 MB": (request(bytes(20_000_000)), {413}),
        "20 MB without a length": (
            request(chunked * 305 + b"0\r\n\r\n", content_length="", transfer_encoding="chunked"),
            {413},
        ),
        "chunks that are none": (
            request(b"what\r\n", content_length="", transfer_encoding="chunked"),
            {400},
        ),
        "20,000 x 20,000 pixels": (request(huge), {400}),
        "a bomb in a form": (form(("a.png", huge)), {400}),
        "a JPEG of 2,000 scans": (request(jpeg[:-2] + 2000 * scan + b"\xff\xd9"), {400}),
        "half a PNG": (request(png[: len(png) // 2]), {400}),
        "half a JPEG": (request(jpeg[: len(jpeg) // 2]), {400}),
        "a program in PostScript": (request(eps), {400}),
        "an unknown address": (request(method="GET", path="/../etc/passwd"), {404}),
        "an upload to an unknown address": (request(bytes(5_000_000), path="/upload"), {404}),
        "the wrong method": (request(png, method="PUT"), {405}),
        "an upload to a page": (request(png, path="/docs"), {405}),
        "no HTTP": (b"\x16\x03\x01 hello\r\n\r\n", {400}),
        "a header of 200 kB": (request(png, x="y" * 200_000), {400, 431}),
        "closed half-way": (request(png, content_length="100000"), set()),
        "closed before the answer": (form(("a.png", png)), set()),
    }
