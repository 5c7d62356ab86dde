"""The server's routes: requests and responses."""

from __future__ import annotations

import asyncio
import contextlib
import html
import io
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp

from cnn_research.core.errors import one_line
from cnn_research.core.run_folder import cores
from cnn_research.data.images import BadImage, decode_input, printable
from cnn_research.inference.exported import Exported
from cnn_research.inference.serve.batching import Answer, Batcher
from cnn_research.inference.serve.limits import Guard, Limits, refusal
from cnn_research.tasks.decode import TOP

MOST_IMAGES = 32
"""Maximum number of images per request."""
MOST_SCANS = 50
"""Maximum number of scans of a progressive JPEG. Each scan covers all pixels, and a small file can
have enough of them to decode for hours; encoders write about ten."""
LONGEST_NAME = 200
HOW = "send an image as the body, or files of a multipart form: curl -F files=@IMAGE ADDRESS"


class Share(BaseModel):
    """A class and its probability, or a colour of a palette and the share that it covers."""

    label: str
    probability: float


class Label(Share):
    """One of several labels, its threshold, and whether its probability reaches it."""

    threshold: float
    present: bool


class Number(BaseModel):
    """A number, in the unit of the training data."""

    value: float


class Prediction(BaseModel):
    """The prediction for one image: for each head, the most probable classes, all labels, the
    number, or the colours."""

    file: str | None
    answers: dict[str, list[Label | Share | Number]]


class Predictions(BaseModel):
    """One prediction per image, in the order of the request."""

    predictions: list[Prediction]


class Health(BaseModel):
    """Number of predicted images and of forward passes."""

    status: str
    images: int
    batches: int


class Error(BaseModel):
    """The error, and what to do about it."""

    error: str


ADDRESSES = "POST /predict, GET /, /health, /model or /docs"
WRONG_ADDRESS = {
    404: f"no such address: use {ADDRESSES}",
    405: f"method not allowed for this address: use {ADDRESSES}",
}
IMAGE = {"type": "string", "format": "binary"}
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["files"],
                "properties": {"files": {"type": "array", "items": IMAGE, "maxItems": MOST_IMAGES}},
            }
        },
        "application/octet-stream": {"schema": IMAGE},
    },
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "No image, a damaged one, or one with too many pixels"},
    408: {"model": Error, "description": "The request took too long to arrive"},
    413: {"model": Error, "description": "The body is too large"},
    422: {"model": Error, "description": "The network's outputs for the image are not finite"},
    503: {"model": Error, "description": "The server is overloaded; see Retry-After"},
}


class Routes:
    """The functions behind the addresses; the arguments are those of `application`."""

    def __init__(
        self,
        network: Exported,
        predict: Callable[[Sequence[np.ndarray]], list[Answer]],
        max_batch: int,
        wait: float,
    ):
        self._network = network
        self._batcher = Batcher(predict, max_batch, wait)
        self._threads = ThreadPoolExecutor(cores(), "decode")
        # Palettes and labels are complete; of classes and histograms, only the first are returned.
        complete = ("palette", "labels")
        self._most = {h["name"]: None if h["kind"] in complete else TOP for h in network.heads}
        self._page = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        batches = asyncio.create_task(self._batcher.run())
        yield
        batches.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def start(self) -> HTMLResponse:
        return HTMLResponse(self._page)

    async def predict(self, request: Request) -> Predictions:
        """Predict one or several images.

        Images are stretched, cropped or padded to the network's input size, as in training. They
        may be JPEG, PNG, GIF, BMP, WebP, TIFF or another format that Pillow reads.
        """
        loop = asyncio.get_running_loop()
        with self._batcher.coming():
            uploads = await received(request)
            decoding = (
                loop.run_in_executor(self._threads, decoded, content, name, self._network)
                for name, content in uploads
            )
            images = await asyncio.gather(*decoding)
        answers = await asyncio.gather(*(self._batcher.predict(image) for image in images))
        predictions = []
        for (name, _), answer in zip(uploads, answers, strict=True):
            if answer is None:
                raise HTTPException(422, f"the network's outputs for {shown(name)} are not finite")
            first = {head: each[: self._most[head]] for head, each in answer.items()}
            predictions.append(Prediction.model_validate({"file": name, "answers": first}))
        return Predictions(predictions=predictions)

    async def health(self) -> Health:
        """Status of the server, and the number of predicted images."""
        return Health(status="ok", images=self._batcher.images, batches=self._batcher.batches)

    async def model(self) -> dict[str, Any]:
        """The exported network: its input, heads with their classes, and metrics."""
        return dict(self._network.facts)


def application(
    network: Exported,
    predict: Callable[[Sequence[np.ndarray]], list[Answer]],
    *,
    limits: Limits,
    max_batch: int,
    wait: float,
) -> ASGIApp:
    """Make the ASGI application; the last arguments are those of `Batcher`."""
    routes = Routes(network, predict, max_batch, wait)
    app = FastAPIOffline(
        redoc_url=None,
        # /docs does not escape it, and it is untrusted.
        title=html.escape(str(network.facts["experiment"])),
        description="Predictions of an exported network for images.",
        version=str(network.facts["step"]),
        lifespan=routes.lifespan,
    )
    app.get("/", include_in_schema=False)(routes.start)
    app.post("/predict", openapi_extra={"requestBody": BODY}, responses=REFUSALS)(routes.predict)
    app.get("/health")(routes.health)
    app.get("/model")(routes.model)
    for kind in (HTTPException, BadImage, ClientDisconnect, Exception):
        app.exception_handler(kind)(refused)
    return Guard(app, limits)


async def refused(request: Request, error: Exception) -> Response:
    """Make the response to a failed request."""
    match error:
        case HTTPException():
            why = WRONG_ADDRESS.get(error.status_code) or one_line(Exception(error.detail))
            return refusal(error.status_code, why, error.headers)
        case BadImage():
            return refusal(400, one_line(error))
        case ClientDisconnect():  # nobody reads it
            return refusal(400, "the connection ended before the request did")
    return refusal(500, "the server failed: see its log")


async def received(request: Request) -> list[tuple[str | None, bytes]]:
    """Read the name and content of each image in a request.

    Raises:
        HTTPException: there are no images, or too many, or the form is damaged.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/"):
        content = await request.body()
        if not content:
            raise HTTPException(400, f"the body is empty: {HOW}")
        return [(None, content)]
    uploads = []
    try:
        async with request.form(max_files=MOST_IMAGES, max_fields=MOST_IMAGES) as form:
            for _, value in form.multi_items():
                if isinstance(value, str):
                    raise HTTPException(400, f"a field of the form is not a file: {HOW}")
                uploads.append((name_of(value.filename), await value.read()))
    except ValueError:  # an invalid boundary or encoding of names
        raise HTTPException(400, f"the form is damaged: {HOW}") from None
    if not uploads:
        raise HTTPException(400, f"the form has no file: {HOW}")
    return uploads


def name_of(given: str | None) -> str | None:
    """Clean a client's file name for JSON and one-line messages; it is never opened."""
    text = printable((given or "").encode("utf-8", "backslashreplace").decode())
    return text[:LONGEST_NAME] or None


def decoded(content: bytes, name: str | None, network: Exported) -> np.ndarray:
    """Decode an image for the network, uint8 `[height, width, channels]`.

    Raises:
        BadImage: it is not an image, damaged, or too large.
    """
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > MOST_SCANS:
        raise BadImage(f"{shown(name)} has more than {MOST_SCANS} scans: save it in fewer")
    how = network.image_shape, network.fit, shown(name), network.counts_colours
    return decode_input(io.BytesIO(content), *how)


def shown(name: str | None) -> str:
    return name or "the body"
