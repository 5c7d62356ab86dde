"""Decode outputs to predictions with NumPy alone, for `predict`, reports, exports and the server.

The description of a head, from `Task.output_spec`, is JSON, so that exports can contain it. It
includes what was fitted to the validation split, such as the `temperature` that divides logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DIGITS = {"classes": 4, "labels": 4, "shares": 6, "number": 6, "palette": 4}
"""Decimal places of predictions, by kind of head."""
TOP = 5
"""Number of classes, or clusters of a histogram, that a prediction lists."""
OTHERS = 3
"""Number of classes in a prediction's text, including the most probable one."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """The prediction for one image, for one head."""

    text: str
    """Short text for people."""
    values: Mapping[str, Any]
    """JSON values."""
    columns: Mapping[str, str | float]
    """Cells of a table, by the suffix of the head's name; "" is the prediction itself."""
    others: str = ""
    """Short text on alternative predictions; empty if there are none."""


@dataclasses.dataclass(frozen=True)
class PaletteColours:
    """A predicted palette, sorted by the share of the image that each colour covers."""

    rgb: np.ndarray
    """uint8 `[colours, 3]`, without colours that are nearest to no pixel."""
    shares: np.ndarray
    """Share of the image that each covers, float64 `[colours]`."""

    @property
    def hex(self) -> list[str]:
        return ["#" + bytes(colour).hex() for colour in self.rgb]


def decode(head: Mapping[str, Any], outputs: np.ndarray) -> list[dict[str, Any]]:
    """Decode the outputs of one head for one image, float32 `[stop - start]`, to JSON values.

    For a number they are `[{"value": number}]`; otherwise
    `[{"label": name, "probability": share}, ...]` for all classes, most probable first. The labels
    of a palette are colours, `#rrggbb`, and the probabilities are the shares that they cover. With
    several labels per image, each also has its `threshold` and whether it is `present`.
    """
    from scipy.special import expit, softmax  # here, as it would double the time of `--list`

    digits = DIGITS[head["kind"]]
    if head["kind"] == "number":
        return [{"value": round(float(outputs[0]) * head["std"] + head["mean"], digits)}]
    temperature = head.get("temperature", 1)
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}, but must be above 0")
    logits = outputs.astype(np.float64) / temperature
    if head["kind"] == "palette":
        palette = palette_of(outputs)
        labels, shares = palette.hex, palette.shares
    elif head["kind"] == "labels":
        labels, shares = head["classes"], expit(logits)
    else:
        labels, shares = head["classes"], softmax(logits)
    order = np.argsort(-shares, kind="stable")
    rows = [{"label": labels[i], "probability": round(float(shares[i]), digits)} for i in order]
    if head["kind"] == "labels":
        limits = head.get("thresholds") or [0.5] * len(labels)
        for row, at in zip(rows, order, strict=True):
            row |= {"threshold": limits[at], "present": bool(shares[at] >= limits[at])}
    return rows


def calibrated(
    heads: Sequence[Mapping[str, Any]], calibration: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Add what was fitted to the validation split, by head, to the descriptions of heads."""
    return [{**head, **calibration.get(head["name"], {})} for head in heads]


def answers_of(heads: Sequence[Mapping[str, Any]], outputs: np.ndarray) -> list[dict[str, Answer]]:
    """Decode outputs, float32 `[images, outputs]`, to each image's predictions by head."""
    return [
        {head["name"]: answer(head, row[head["start"] : head["stop"]]) for head in heads}
        for row in outputs
    ]


def answer(head: Mapping[str, Any], outputs: np.ndarray) -> Answer:
    """Decode the prediction of one head for one image; the arguments are those of `decode`."""
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
    """Decode an image's palette from outputs, float32 `[colours * 4]`.

    Colours that are equal in 8 bits are merged.
    """
    import jax.numpy as jnp

    from cnn_research.ops.colours import lab_to_srgb

    rows = outputs.reshape(-1, 4)
    rgb = np.rint(np.asarray(lab_to_srgb(jnp.asarray(rows[:, :3]))) * 255).astype(np.uint8)
    different, places = np.unique(rgb, axis=0, return_inverse=True)
    shares = np.bincount(places.ravel(), rows[:, 3].astype(np.float64), len(different))
    order = [place for place in np.argsort(-shares, kind="stable") if shares[place] > 0]
    return PaletteColours(different[order], shares[order])
