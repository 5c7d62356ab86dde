"""Decodes outputs into answers, with NumPy alone: for predictions, reports, exports, the server.

The description of a head, from `Task.output_spec`, is JSON, so that exports carry it; with what is
fitted to validation, such as a `temperature` by which the outputs of classes are divided.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DIGITS = {"classes": 4, "labels": 4, "shares": 6, "number": 6, "palette": 4}
"""Per kind of head, the digits after the point of its answers."""
TOP = 5
"""Classes, or clusters of a histogram, that an answer lists."""
OTHERS = 3
"""Classes that an answer has in words, the most probable one included."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """The prediction for one image, for one head."""

    text: str
    """For people, in a few words."""
    values: Mapping[str, Any]
    columns: Mapping[str, str | float]
    """The same for a table, by what follows the head's name; "" is the answer itself."""
    others: str = ""
    """For people, alternative answers in a few words; empty where there are none."""


@dataclasses.dataclass(frozen=True)
class PaletteColours:
    """A palette that a network predicts, the colour that covers most first."""

    rgb: np.ndarray
    """uint8 `[colours, 3]`; colours that are nearest to no pixel are left out."""
    shares: np.ndarray
    """Share of the image that each covers, float64 `[colours]`."""

    @property
    def hex(self) -> list[str]:
        return ["#" + bytes(colour).hex() for colour in self.rgb]


def decode(head: Mapping[str, Any], outputs: np.ndarray) -> list[dict[str, Any]]:
    """Decode the outputs of one head for one image, float32 `[stop - start]`, into JSON values.

    Of a number they are `[{"value": number}]`; otherwise
    `[{"label": name, "probability": share}, ...]` for all classes, the most probable first. The
    labels of a palette are colours, `#rrggbb`, and the probabilities the shares that they cover.
    Where an image has several labels, each also has a `threshold`, and whether it is `present`.
    """
    from scipy.special import expit, softmax  # here, as it would double the time of `--list`

    digits = DIGITS[head["kind"]]
    if head["kind"] == "number":
        return [{"value": round(float(outputs[0]) * head["std"] + head["mean"], digits)}]
    temperature = head.get("temperature", 1)
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}, and has to be above 0")
    logits = outputs.astype(np.float64) / temperature
    if head["kind"] == "palette":
        palette = palette_of(outputs)
        labels, shares = palette.hex, palette.shares
    elif head["kind"] == "labels":
        labels, shares = head["classes"], expit(logits)
    else:
        labels, shares = head["classes"], softmax(logits)
    order = np.argsort(-shares, kind="stable")
    found = [{"label": labels[i], "probability": round(float(shares[i]), digits)} for i in order]
    if head["kind"] == "labels":
        limits = head.get("thresholds") or [0.5] * len(labels)
        for each, at in zip(found, order, strict=True):
            each |= {"threshold": limits[at], "present": bool(shares[at] >= limits[at])}
    return found


def calibrated(
    heads: Sequence[Mapping[str, Any]], calibration: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The descriptions of heads with what is fitted to validation, by the head's name."""
    return [{**head, **calibration.get(head["name"], {})} for head in heads]


def answers_of(heads: Sequence[Mapping[str, Any]], outputs: np.ndarray) -> list[dict[str, Answer]]:
    """The prediction for each image, for each head, of outputs, float32 `[images, outputs]`."""
    return [
        {head["name"]: answer(head, row[head["start"] : head["stop"]]) for head in heads}
        for row in outputs
    ]


def answer(head: Mapping[str, Any], outputs: np.ndarray) -> Answer:
    """The answer of one head for one image; the arguments are those of `decode`."""
    if head["kind"] == "palette":
        from cnn_research.tasks.palette import palette_answer

        return palette_answer(palette_of(outputs))
    decoded = decode(head, outputs)
    if head["kind"] == "number":
        number = decoded[0]["value"]
        return Answer(f"{number:.5g}", {"number": number}, {"": number})
    if head["kind"] == "labels":
        return _labels_answer(head, decoded)
    top = {each["label"]: each["probability"] for each in decoded[:TOP]}
    words = [f"{label} {share:.0%}" for label, share in top.items()]
    first, share = next(iter(top.items()))
    if head["kind"] == "shares":
        return Answer(", ".join(words), {"shares": top}, {"": first})
    return Answer(
        text=words[0],
        values={"class": first, "probability": share, "top": top},
        columns={"": first, "probability": share},
        others=", ".join(words[1:OTHERS]),
    )


def _labels_answer(head: Mapping[str, Any], decoded: list[dict[str, Any]]) -> Answer:
    present = [each["label"] for each in decoded if each["present"]]
    shares = {each["label"]: each["probability"] for each in decoded}
    return Answer(
        text=", ".join(f"{label} {shares[label]:.0%}" for label in present) or "none",
        values={"labels": present, "all": decoded},
        columns={"": "; ".join(present), **{label: shares[label] for label in head["classes"]}},
    )


def palette_of(outputs: np.ndarray) -> PaletteColours:
    """Palette of one image's outputs, float32 `[colours * 4]`; colours equal in 8 bits are
    merged."""
    import jax.numpy as jnp

    from cnn_research.ops.colours import lab_to_srgb

    rows = outputs.reshape(-1, 4)
    rgb = np.rint(np.asarray(lab_to_srgb(jnp.asarray(rows[:, :3]))) * 255).astype(np.uint8)
    different, places = np.unique(rgb, axis=0, return_inverse=True)
    shares = np.bincount(places.ravel(), rows[:, 3].astype(np.float64), len(different))
    order = [place for place in np.argsort(-shares, kind="stable") if shares[place] > 0]
    return PaletteColours(different[order], shares[order])
