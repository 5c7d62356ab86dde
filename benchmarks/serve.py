"""How many images a second the server answers, with batches and without, and what it withstands.

    python -m benchmarks.serve --output results/serve.json

Two servers of each network run side by side, one of which answers each image alone; the rounds
alternate, so that what the machine does meanwhile falls on both. The networks have the parameters
that training would start from.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import http.client
import io
import itertools
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.results import ROOT, measurement, row
from cnn_research.inference.exported import FACTS, FORMAT, MODEL, write_sums

NETWORKS = {"resnet20_cifar": 1000, "resnet18_small": 400, "resnet18": 100}
"""How many requests each server gets."""
CLIENTS = 8
ROUNDS = 10
HOSTILE = 200
SEED = 0

Answer = tuple[int, dict[str, Any]]
"""The status, and the JSON values; 0 where the client itself ended the connection."""


# Exports and servers -----------------------------------------------------------------------------


def write_export(
    folder: Path,
    forward: Callable[[Any], Any],
    image_shape: tuple[int, int, int],
    heads: Sequence[Mapping[str, Any]],
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
        "input": {"dtype": "uint8", "shape": ["batch", *image_shape]},
        "outputs": heads[-1]["stop"],
        "heads": list(heads),
        "step": 0,
        "figures": {},
    }
    (folder / FACTS).write_text(json.dumps(facts))
    write_sums(folder)
    return folder


def export_of_initial(name: str, folder: Path) -> tuple[Path, tuple[int, int, int]]:
    """The export of a registered architecture that is not trained, and its images' shape."""
    import jax
    import jax.numpy as jnp

    from cnn_research.models.registry import architectures

    found = architectures()[name]
    model, shape = found.model, found.image_shape
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, *shape)), train=False))(
        jax.random.key(SEED)
    )

    def forward(images):
        return model.apply(variables, images.astype(jnp.float32) / 255, train=False)

    classes = [f"class {index}" for index in range(model.num_classes)]
    head = {"name": "label", "kind": "classes", "classes": classes}
    return write_export(
        folder / name, forward, shape, [{**head, "start": 0, "stop": len(classes)}]
    ), shape


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


# Measurements ------------------------------------------------------------------------------------


def from_clients(jobs: Iterator[Callable[[], None]]) -> float:
    """Does the jobs in as many threads as there are clients; the seconds that it took."""
    lock = threading.Lock()
    failed: list[BaseException] = []

    def client() -> None:
        while not failed:
            with lock:
                job = next(jobs, None)
            if job is None:
                return
            try:
                job()
            except BaseException as error:
                failed.append(error)

    started = time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return time.perf_counter() - started


def first_label(answer: Answer) -> str:
    """What the network takes the image for; the status, where there is no answer."""
    status, values = answer
    if status != 200:
        return f"{status} {values}"
    return values["predictions"][0]["answers"]["label"][0]["label"]


def throughput(name: str, requests: int, scratch: Path) -> dict[str, Any]:
    """Images a second with batches and one by one, and how many answers were wrong."""
    export, shape = export_of_initial(name, scratch)
    asked = [request(encoded(noise(shape, seed))) for seed in range(CLIENTS)]
    wrong: list[str] = []
    rates: dict[str, list[float]] = {"batches": [], "one by one": []}
    costs: dict[str, list[float]] = {"batches": [], "one by one": []}
    with Server(export) as batches, Server(export, "--max-batch=1") as alone:
        servers = {"batches": batches, "one by one": alone}
        expected = [first_label(exchange(alone.port, sent)) for sent in asked]

        def job(port: int, place: int) -> Callable[[], None]:
            def ask() -> None:
                said = first_label(exchange(port, asked[place]))
                if said != expected[place]:
                    wrong.append(said)

            return ask

        # The first round is not counted.
        for number, (kind, server) in itertools.product(range(ROUNDS + 1), servers.items()):
            count = requests // ROUNDS
            before = server.cpu_seconds()
            seconds = from_clients(job(server.port, i % CLIENTS) for i in range(count))
            if number:
                rates[kind].append(count / seconds)
                costs[kind].append(1000 * (server.cpu_seconds() - before) / count)
        health = batches.get("/health")
    ratios = [a / b for a, b in zip(rates["batches"], rates["one by one"])]
    return {
        "images_a_second": {kind: [round(x, 1) for x in found] for kind, found in rates.items()},
        "cpu_milliseconds_an_image": {
            kind: [round(x, 2) for x in found] for kind, found in costs.items()
        },
        "times_as_many": round(statistics.median(ratios), 2),
        "images_in_a_batch": round(health["images"] / health["batches"], 2),
        "requests": requests,
        "wrong": wrong,
    }


def siege(scratch: Path) -> dict[str, Any]:
    """Good requests with hostile ones among them: what each was answered, and the memory."""
    export, shape = export_of_initial("resnet20_cifar", scratch / "siege")
    good = request(encoded(noise(shape, 0)))
    kinds = hostile()
    order = random.Random(SEED)
    names = [name for name, _ in zip(itertools.cycle(kinds), range(HOSTILE))] + ["good"] * 1000
    order.shuffle(names)
    statuses: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    unclear: list[str] = []
    with Server(export) as server:
        expected = first_label(exchange(server.port, good))
        from_clients((lambda: first_label(exchange(server.port, good))) for _ in range(100))
        before = server.resident()

        def job(name: str) -> Callable[[], None]:
            def ask() -> None:
                sent, wanted = kinds.get(name, (good, {200}))
                status, values = exchange(server.port, sent, cut=not wanted)
                statuses[name][status] += 1
                clear = (
                    first_label((status, values)) == expected
                    if status == 200
                    else (bool(values.get("error")) or not wanted)
                )
                if status not in (wanted or {0}) or not clear:
                    unclear.append(f"{name}: {status} {values}")

            return ask

        seconds = from_clients(job(name) for name in names)
        after = server.resident()
        ended = server.end()
        said = server.errors()
    return {
        "statuses": {name: dict(found) for name, found in sorted(statuses.items())},
        "unclear": unclear,
        "seconds": round(seconds, 1),
        "resident_bytes": {"before": before, "after": after},
        "growth": round(after / before - 1, 4),
        "exit_code": ended,
        "stderr": said,
    }


@measurement(
    what="python -m cnn_research serve under load and under attack",
    target="no failure; batches answer more images a second; memory grows by at most 20 %",
    seeds=[SEED],
)
def main(options):
    with tempfile.TemporaryDirectory() as folder:
        speeds = {
            name: throughput(name, requests, Path(folder)) for name, requests in NETWORKS.items()
        }
        attacked = siege(Path(folder))
    rows = [
        row(
            f"{name} served to {CLIENTS} clients, images a second with batches and one by one; "
            f"{found['requests']:,} requests each",
            "no wrong answer; more with batches",
            " and ".join(
                f"{statistics.median(rates):.1f}" for rates in found["images_a_second"].values()
            )
            + f", {found['times_as_many']:.2f} times as many; "
            + " and ".join(
                f"{statistics.median(costs):.1f}"
                for costs in found["cpu_milliseconds_an_image"].values()
            )
            + f" ms of processor an image; {len(found['wrong'])} wrong",
            not found["wrong"] and found["times_as_many"] > 1,
        )
        for name, found in speeds.items()
    ]
    good = attacked["statuses"]["good"]
    rows.append(
        row(
            f"{HOSTILE} hostile requests among 1,000 good ones",
            "each refused in a line, every good one answered, memory at most 20 % more",
            f"{len(attacked['unclear'])} not so; {good.get(200, 0):,} good ones answered; memory "
            f"{attacked['growth']:+.1%}",
            not attacked["unclear"] and good == {200: 1000} and attacked["growth"] <= 0.2,
        )
    )
    return rows, {"throughput": speeds, "siege": attacked}


if __name__ == "__main__":
    sys.exit(main())
