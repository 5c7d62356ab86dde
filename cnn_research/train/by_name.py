"""Pretrained weights by name: every field of a training that belongs to them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from cnn_research.core.config import flatten, with_fields
from cnn_research.core.errors import UsageError
from cnn_research.models.named_weights import NONE, named_weights
from cnn_research.models.pretrained import Pretrained
from cnn_research.train.transfer import Transfer


def with_pretrained(experiment: Any, name: str) -> Any:
    """The training with the weights of a name, as `--pretrained=NAME` has it.

    The network, the size of images (which are cropped), mean and deviation are theirs. The head for
    the data's classes is fitted to what the network computes, before the first step. Then all of it
    is trained, or the head alone where `transfer.cache_after` was set before. 'none' trains all of
    it from scratch.

    Raises:
        UsageError: there are no weights of that name, or the experiment cannot use any.
    """
    return with_fields(experiment, fields_of_weights(experiment, name))


def fields_of_weights(experiment: Any, name: str, named: Collection[str] = ()) -> dict[str, Any]:
    """The values of the fields that belong to the weights, by path.

    Fields that are `named` keep the experiment's values, are left out here, and feed what depends
    on them: new layers are those of the network, and the head follows the layer that is named.
    Errors are those of `with_pretrained`.
    """
    fields = flatten(experiment)
    if "pretrained.source" not in fields:
        raise UsageError(f"{experiment.name} takes no weights: --pretrained does not apply")
    if name != NONE and "data.image_size" not in fields:
        raise UsageError(
            f"images of {experiment.name} have one size, and --pretrained={name} needs its own: "
            "take an experiment with --data.image-size, such as image_folder"
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
