"""Dynamic batching: images that arrive at the same time share a forward pass."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from cnn_research.inference.exported import Exported

Answer = dict[str, list[dict[str, Any]]] | None
"""Decoded outputs for one image, by head; None if they are not finite."""


def batch_sizes(largest: int) -> list[int]:
    """Powers of two up to `largest`, to compile rarely."""
    return [1 << power for power in range(largest.bit_length())]


def compiled(network: Exported, largest: int) -> Callable[[Sequence[np.ndarray]], list[Answer]]:
    """Compile the network for all batch sizes up to `largest`; return a function of uint8 images.

    Images are `[height, width, channels]`. The function compiles nothing more.
    """

    def predict(images: Sequence[np.ndarray]) -> list[Answer]:
        outputs = network(np.stack(images))
        finite = np.isfinite(outputs).all(axis=1)
        answers = iter(network.answers(outputs[finite]))
        return [next(answers) if good else None for good in finite]

    for size in batch_sizes(largest):
        predict([np.zeros(network.image_shape, np.uint8)] * size)
    return predict


class Batcher:
    """Collects images for the next forward pass while one is running.

    The first image of a batch waits up to `wait` seconds for others that are being received, up to
    `largest`. `images` and `batches` are the numbers processed.
    """

    def __init__(
        self, predict: Callable[[Sequence[np.ndarray]], list[Answer]], largest: int, wait: float
    ):
        self.images = self.batches = 0
        self._predict, self._largest, self._wait = predict, largest, wait
        self._coming = 0
        self._waiting: asyncio.Queue[tuple[np.ndarray, asyncio.Future[Answer]]] = asyncio.Queue()

    @contextlib.contextmanager
    def coming(self) -> Iterator[None]:
        """Within the block, images are being received and decoded, so batches wait for them."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    async def predict(self, image: np.ndarray) -> Answer:
        """Predict one image, uint8 `[height, width, channels]`."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((image, answer))
        return await answer

    async def run(self) -> None:
        """Process images until cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "forward") as thread:
            waiting: list[tuple[np.ndarray, asyncio.Future[Answer]]] = []
            while True:
                if not waiting:
                    waiting.append(await self._waiting.get())
                if self._coming and len(waiting) + self._waiting.qsize() < self._largest:
                    await asyncio.sleep(self._wait)
                while not self._waiting.empty():
                    waiting.append(self._waiting.get_nowait())
                # Drop images whose clients have disconnected or timed out.
                waiting = [(image, answer) for image, answer in waiting if not answer.done()]
                if waiting:
                    # The largest full size, as padding would be computed, too.
                    count = batch_sizes(min(len(waiting), self._largest))[-1]
                    batch, waiting = waiting[:count], waiting[count:]
                    images = [image for image, _ in batch]
                    answers = await loop.run_in_executor(thread, self._attempt, images)
                    self._resolve(batch, answers)

    def _attempt(self, images: Sequence[np.ndarray]) -> list[Answer] | Exception:
        try:
            return self._predict(images)
        except Exception as error:  # the batch fails, not the server
            return error

    def _resolve(
        self,
        batch: Sequence[tuple[np.ndarray, asyncio.Future[Answer]]],
        answers: list[Answer] | Exception,
    ) -> None:
        self.images += len(batch)
        self.batches += 1
        for place, (_, answer) in enumerate(batch):
            if answer.done():
                continue
            if isinstance(answers, Exception):
                answer.set_exception(answers)
            else:
                answer.set_result(answers[place])
