"""Pretrained weights by name, with all fields of a training that depend on them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from cnn_research.core.config import flatten, with_fields
from cnn_research.core.errors import UsageError
from cnn_research.models.named_weights import NONE, named_weights
from cnn_research.models.pretrained import Pretrained
from cnn_research.train.transfer import Transfer


def with_pretrained(experiment: Any, name: str) -> Any:
    """Apply `--pretrained=NAME` to a training.

    The weights determine the network, the size of images (which are cropped), mean and standard
    deviation. Before the first step, the head for the data's classes is fitted to the network's
    features. Then all layers are trained, or only the head if `transfer.cache_after` is set.
    'none' trains all layers from scratch.

    Raises:
        UsageError: if there are no weights of that name, or the experiment cannot use weights.
    """
    return with_fields(experiment, fields_of_weights(experiment, name))


def fields_of_weights(experiment: Any, name: str, named: Collection[str] = ()) -> dict[str, Any]:
    """Return the values of the fields that belong to the weights, by path.

    `named` fields keep the experiment's values and are omitted; other fields depend on them: the
    fresh layers are those of the named network, and the head follows the named layer. Raises the
    errors of `with_pretrained`.
    """
    fields = flatten(experiment)
    if "pretrained.source" not in fields:
        raise UsageError(f"{experiment.name} uses no weights: --pretrained does not apply")
    if name != NONE and "data.image_size" not in fields:
        raise UsageError(
            f"images of {experiment.name} have a fixed size, and --pretrained={name} needs its "
            "own: use an experiment with --data.image-size, such as image_folder"
        )
    transfer = experiment.transfer
    if name == NONE:
        values = _leaves(Pretrained(), Transfer(penalties=transfer.penalties))
    else:
        weights = named_weights(name)
        model = experiment.model if "model" in named else weights.model
        typed = [f"transfer.{field}" for field in ("fit_after", "cache_after")]
        layers = [fields[path] for path in typed if path in named]
        layer = next(filter(None, layers), weights.family.layer)
        values = {
            "model": model,
            "data.image_size": (weights.image_size, weights.image_size),
            **({"data.fit": "crop"} if "data.fit" in fields else {}),
            "mean": weights.pixels.mean,
            "std": weights.pixels.std,
            **_leaves(
                Pretrained(name=name, fresh=weights.fresh(model)),
                Transfer(
                    cache_after=layer if transfer.cache_after else "",
                    fit_after=layer,
                    penalties=transfer.penalties,
                ),
            ),
        }
    return {path: value for path, value in values.items() if path not in named}


def _leaves(pretrained: Pretrained, transfer: Transfer) -> dict[str, Any]:
    return flatten(pretrained, "pretrained.") | flatten(transfer, "transfer.")
