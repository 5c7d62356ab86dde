"""`python -m cnn_research serve`: what it answers, what it refuses, and how it ends."""

from __future__ import annotations

import http.client
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from cnn_research.core.errors import run_command
from cnn_research.data.images import decode
from cnn_research.inference.exported import FACTS, MODEL, open_export, write_sums
from cnn_research.inference.serve import __main__ as command
from cnn_research.inference.serve.batching import compiled
from tests.serving import (
    Server,
    encoded,
    exchange,
    form,
    hostile,
    noise,
    request,
    write_export,
)

SHAPE = (8, 6, 3)
CLASSES = [f"class {index}" for index in range(7)]
HEADS = (
    {"name": "kind", "kind": "classes", "classes": CLASSES, "start": 0, "stop": 7},
    {"name": "year", "kind": "number", "mean": 2000.0, "std": 5.0, "start": 7, "stop": 8},
)
WEIGHTS = np.random.default_rng(0).normal(0, 0.2, (8 * 6 * 3, 8)).astype(np.float32)
SECONDS = 2


def forward(images):
    return (images.astype("float32") / 255).reshape(images.shape[0], -1) @ WEIGHTS


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return write_export(tmp_path_factory.mktemp("served") / "linear", forward, SHAPE, HEADS)


@pytest.fixture(scope="module")
def server(export):
    options = (f"--max-seconds={SECONDS}", "--max-requests=8", "--max-batch=8", "--max-wait=100")
    with Server(export, *options) as running:
        yield running
        assert running.end(signal.SIGINT) == 0
        assert "Traceback" not in running.errors()


def pictures(count: int) -> list[bytes]:
    return [encoded(noise((20 + seed, 30, 3), seed)) for seed in range(count)]


def expected_of(picture: bytes) -> dict:
    """By NumPy alone."""
    pixels = decode(io.BytesIO(picture), SHAPE[:2]).astype(np.float64) / 255
    outputs = pixels.ravel() @ WEIGHTS
    shares = np.exp(outputs[:7]) / np.exp(outputs[:7]).sum()
    best = np.argsort(-shares)[:5]
    return {
        "kind": [(CLASSES[i], pytest.approx(shares[i], abs=2e-4)) for i in best],
        "year": pytest.approx(2000 + 5 * outputs[7], abs=1e-3),
    }


def said_of(prediction: dict) -> dict:
    kinds = [(share["label"], share["probability"]) for share in prediction["answers"]["kind"]]
    return {"kind": kinds, "year": prediction["answers"]["year"][0]["value"]}


def test_answers_are_those_of_the_network(server):
    one, two, three = pictures(3)
    status, values = exchange(server.port, request(one))
    assert status == 200
    (prediction,) = values["predictions"]
    assert prediction["file"] is None
    assert said_of(prediction) == expected_of(one)
    status, values = exchange(server.port, form(("../two.png", two), ("Müller.png", three)))
    assert status == 200
    assert [found["file"] for found in values["predictions"]] == ["../two.png", "Müller.png"]
    assert list(map(said_of, values["predictions"])) == [expected_of(two), expected_of(three)]


def test_what_comes_together_is_answered_together(server):
    asked = [request(picture) for picture in pictures(8)]
    alone = [exchange(server.port, sent) for sent in asked]
    before = server.get("/health")
    with ThreadPoolExecutor(8) as clients:
        together = list(clients.map(lambda sent: exchange(server.port, sent), asked))
    after = server.get("/health")
    assert after["images"] - before["images"] == 8
    assert after["batches"] - before["batches"] <= 4
    for (_, one), (_, other) in zip(alone, together, strict=True):
        (one,), (other,) = one["predictions"], other["predictions"]
        assert said_of(other)["year"] == pytest.approx(said_of(one)["year"], abs=1e-4)
        assert dict(said_of(other)["kind"]) == pytest.approx(dict(said_of(one)["kind"]), abs=2e-4)


@pytest.mark.parametrize("kind", hostile())
def test_hostile_requests_are_refused_in_a_line(server, kind):
    sent, wanted = hostile()[kind]
    status, values = exchange(server.port, sent, cut=not wanted)
    assert status in (wanted or {0})
    assert not wanted or (list(values) == ["error"] and "\n" not in values["error"])
    assert exchange(server.port, request(pictures(1)[0]))[0] == 200


@pytest.mark.parametrize(
    "start", [request(b"half", content_length="9"), b"GET /health HTTP/1.1\r\nhost"]
)
def test_who_sends_half_a_request_is_told_so(server, start):
    with socket.create_connection(("127.0.0.1", server.port), timeout=4 * SECONDS) as slow:
        slow.sendall(start)
        answer = slow.makefile("rb").read()  # to the end: the connection is closed
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert "complete" in json.loads(body)["error"]


def test_more_requests_at_once_are_told_to_come_again(server):
    half = request(b"half", content_length="9")
    good = request(pictures(1)[0])
    waiting = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]
    for connection in waiting:
        connection.sendall(half)
    status, values = exchange(server.port, good)
    while status == 200:  # the eighth is still on its way
        status, values = exchange(server.port, good)
    assert status == 503 and "try again" in values["error"]
    assert server.get("/health")["status"] == "ok"
    for connection in waiting:
        connection.close()
    while status == 503:
        status, values = exchange(server.port, good)
    assert status == 200


def test_a_client_that_knows_how_to_ask_first_is_spared_the_upload(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(request(content_length="99000000", expect="100-continue"))
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_pages_need_nothing_from_elsewhere(server):
    found = {}
    for path in ("/", "/docs", "/openapi.json", "/model", "/static-offline-docs/swagger-ui.css"):
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        found[path] = answer.read().decode()
        connection.close()
    assert "Drop images" in found["/"]
    for path in ("/", "/docs"):
        assert "https://" not in found[path].replace("http://www.w3.org/2000/svg", "")
    assert "/static-offline-docs/swagger-ui.css" in found["/docs"]
    assert "/predict" in json.loads(found["/openapi.json"])["paths"]
    assert json.loads(found["/model"])["heads"] == list(HEADS)


def test_names_of_a_stranger_are_no_html(export, tmp_path):
    copy = shutil.copytree(export, tmp_path / "stranger")
    facts = json.loads((copy / FACTS).read_text())
    (copy / FACTS).write_text(json.dumps(facts | {"experiment": "</title><script>x()</script>"}))
    write_sums(copy)
    with Server(copy) as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.port)
        connection.request("GET", "/docs")
        page = connection.getresponse().read().decode()
        connection.close()
        assert "<script>x()" not in page and "&lt;script&gt;x()" in page
        assert running.end(signal.SIGTERM) == 0


def test_outputs_that_are_no_numbers_are_said_to_be_none(tmp_path):
    def broken(images):
        return forward(images) * np.float32("nan")

    ask = compiled(open_export(write_export(tmp_path / "broken", broken, SHAPE, HEADS)), 1)
    assert ask([np.zeros(SHAPE, np.uint8)]) == [None]


# The command -------------------------------------------------------------------------------------


def damaged(export, tmp_path):
    copy = shutil.copytree(export, tmp_path / "damaged")
    content = bytearray((copy / MODEL).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / MODEL).write_bytes(content)
    return copy


def without_heads(export, tmp_path):
    copy = shutil.copytree(export, tmp_path / "without")
    facts = json.loads((copy / FACTS).read_text())
    (copy / FACTS).write_text(json.dumps(facts | {"heads": None}))
    write_sums(copy)
    return copy


@pytest.mark.parametrize(
    ("kind", "said", "code"),
    [
        ("taken", "cannot listen on port", 1),
        ("no export", "contains no export", 1),
        ("damaged", "is damaged", 1),
        ("no heads", "are missing", 1),
        ("no host", "is not an address", 2),
        ("no batch", "--max-batch must be above 0", 2),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(
    export, server, tmp_path, monkeypatch, capsys, kind, said, code
):
    monkeypatch.setattr(signal, "signal", lambda *unused: None)
    words = {
        "taken": [str(export), f"--port={server.port}"],
        "no export": [str(tmp_path), "--port=0"],
        "damaged": [str(damaged(export, tmp_path)), "--port=0"],
        "no heads": [str(without_heads(export, tmp_path)), "--port=0"],
        "no host": [str(export), "--host=no.such.host.invalid"],
        "no batch": [str(export), "--max-batch=0"],
    }[kind]
    assert run_command(command.main, words) == code
    found = capsys.readouterr()
    assert found.err.startswith("error: ") and found.err.count("\n") == 1
    assert said in found.err and not found.out


def test_everyone_is_answered_only_with_a_warning(export):
    with Server(export, "--host=0.0.0.0") as running:
        assert running.end(signal.SIGTERM) == 0
        assert running.errors().startswith("warning: any machine that can reach 0.0.0.0")


def test_a_signal_ends_it_where_python_ignores_exceptions():
    program = (
        "import gc, signal\n"
        "from cnn_research.inference.serve import __main__ as command\n"
        "def serve(options):\n"
        "    gc.callbacks.append(lambda *_: signal.raise_signal(signal.SIGTERM))\n"
        "    gc.collect()\n"
        "    print('it went on')\n"
        "command.serve = serve\n"
        "command.main(['export'])\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
