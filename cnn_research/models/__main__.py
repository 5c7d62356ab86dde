"""Prints every registered model, then the pretrained weights for `--pretrained=NAME`.

python -m cnn_research.models

For each model: image size, smallest height and width (`least`), parameters during training,
auxiliary heads included, 10^6 FLOPs of one image's forward pass (a multiplication and an addition
count as two), and source.

For weights: published top-1 accuracy on ImageNet's validation images in percent, size of the file
in MB, whether the project has ever loaded this very file (`loaded`), and where it is or how to get
it (`where`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from cnn_research.core.errors import UsageError, run_command
from cnn_research.models.flops import Cost, cost, least_size
from cnn_research.models.named_weights import NAMED
from cnn_research.models.registry import Architecture, architectures


def main(words: list[str]) -> None:
    """Print both tables, each line as soon as it is computed; --help is the only option."""
    if words in (["--help"], ["-h"]):
        print(__doc__, end="")
        return
    if words:
        raise UsageError(f"`python -m cnn_research.models` has no option '{words[0]}'")
    costs = print_models(architectures())
    print()
    print_weights(costs)


def print_models(models: Mapping[str, Architecture]) -> dict[str, Cost]:
    """Print one line per model; return the costs by name."""
    line = f"{{:<{max(map(len, models))}}}  {{:<9}}  {{:>5}}  {{:>11}}  {{:>10}}  {{}}"
    print(line.format("model", "image", "least", "parameters", "10^6 FLOPs", "source"))
    costs = {}
    for name, each in models.items():
        costs[name] = cost(each.model, each.image_shape)
        shape, least = each.image_shape, least_size(each.model, each.image_shape[2])
        image = "x".join(map(str, shape))
        print(line.format(name, image, least, *_shown(costs[name]), each.source), flush=True)
    return costs


def print_weights(costs: Mapping[str, Cost]) -> None:
    """Print one line for each of the named weights; `costs` has the networks' costs by name."""
    width = max(map(len, NAMED))
    line = f"{{:<{width}}}  {{:>5}}  {{:>11}}  {{:>10}}  {{:>5}}  {{:>5}}  {{:<10}}  {{:<6}}  {{}}"
    heads = ("top-1", "MB", "licence", "loaded", "where")
    print(line.format("weights", "image", "parameters", "10^6 FLOPs", *heads))
    for name, each in NAMED.items():
        facts = (
            f"{each.top1:.1f}",
            each.megabytes,
            each.licence,
            "yes" if each.loaded else "never",
        )
        where = f"{each.source.place}: {each.source}"
        print(line.format(name, each.image_size, *_shown(costs[each.network]), *facts, where))


def _shown(total: Cost) -> tuple[str, str]:
    return f"{total.parameters:,}", f"{total.flops / 1e6:,.1f}"


if __name__ == "__main__":
    sys.exit(run_command(main))
