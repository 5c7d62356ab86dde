"""Images per second of the server, with and without batches, and its robustness.

    python -m benchmarks.serve --output results/serve.json

Two servers of each network run side by side, one of which processes images one by one; rounds
alternate, so that disturbances affect both alike. The networks have initial parameters.
"""

from __future__ import annotations

import collections
import itertools
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.results import measurement, row
from tests.serving import Answer, Server, encoded, exchange, hostile, noise, request, write_export

NETWORKS = {"resnet20_cifar": 1000, "resnet18_small": 400, "resnet18": 100}
"""Number of requests to each server."""
CLIENTS = 8
ROUNDS = 10
HOSTILE = 200
SEED = 0


def export_of_initial(name: str, folder: Path) -> tuple[Path, tuple[int, int, int]]:
    """Export an architecture with initial parameters; return the folder and image shape."""
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


# Measurements ------------------------------------------------------------------------------------


def from_clients(jobs: Iterator[Callable[[], None]]) -> float:
    """Run the jobs in one thread per client; return the seconds."""
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
    """Predicted class, or the status if there is no prediction."""
    status, values = answer
    if status != 200:
        return f"{status} {values}"
    return values["predictions"][0]["answers"]["label"][0]["label"]


def throughput(name: str, requests: int, scratch: Path) -> dict[str, Any]:
    """Images per second with batches and one by one, and the number of wrong responses."""
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
    """Send valid and hostile requests; check the responses and the memory."""
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
            f"{name} served to {CLIENTS} clients, images per second with and without batching; "
            f"{found['requests']:,} requests each",
            "all responses correct; faster with batches",
            " and ".join(
                f"{statistics.median(rates):.1f}" for rates in found["images_a_second"].values()
            )
            + f", {found['times_as_many']:.2f} times as many; "
            + " and ".join(
                f"{statistics.median(costs):.1f}"
                for costs in found["cpu_milliseconds_an_image"].values()
            )
            + f" ms of CPU time per image; {len(found['wrong'])} wrong",
            not found["wrong"] and found["times_as_many"] > 1,
        )
        for name, found in speeds.items()
    ]
    good = attacked["statuses"]["good"]
    rows.append(
        row(
            f"{HOSTILE} hostile requests among 1,000 valid ones",
            "each refused with one line, all valid ones served, memory at most 20 % higher",
            f"{len(attacked['unclear'])} exceptions; {good.get(200, 0):,} valid ones served; "
            f"memory {attacked['growth']:+.1%}",
            not attacked["unclear"] and good == {200: 1000} and attacked["growth"] <= 0.2,
        )
    )
    return rows, {"throughput": speeds, "siege": attacked}


if __name__ == "__main__":
    sys.exit(main())
