"""List the networks, and the pretrained weights for `--pretrained=NAME`.

usage: python -m cnn_research models [--import=FILE.py ...]

--import names a file or module of your own that registers more networks.

Of a network: its image size, the smallest height and width that it takes
(least), its parameters (auxiliary heads included), the FLOPs of one image's
forward pass (a multiplication and an addition count as two), and its source.

Of weights: the published top-1 accuracy on ImageNet's validation images in per
cent, the size of the file, whether this project has ever loaded that file, and
where it is on this machine or where it comes from.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from cnn_research.core.definitions import import_outside
from cnn_research.core.errors import only_help, run_command
from cnn_research.core.terminal import show
from cnn_research.models.flops import Cost, cost, least_size
from cnn_research.models.named_weights import NAMED
from cnn_research.models.registry import Architecture, architectures


def main(words: list[str]) -> None:
    """Print the tables line by line."""
    imports = [word.removeprefix("--import=") for word in words if word.startswith("--import=")]
    if len(imports) < len(words):
        only_help([word for word in words if not word.startswith("--import=")], __doc__)
        return
    for name in imports:
        import_outside(name)
    costs = print_models(architectures())
    print()
    print_weights(costs)


def print_models(models: Mapping[str, Architecture]) -> dict[str, Cost]:
    """Print one line per model; return the costs by name."""
    line = f"{{:<{max(map(len, models))}}}  {{:<9}}  {{:>5}}  {{:>11}}  {{:>10}}  {{}}"
    show(line.format("model", "image", "least", "parameters", "10^6 FLOPs", "source"))
    costs = {}
    for name, each in models.items():
        costs[name] = cost(each.model, each.image_shape)
        shape, least = each.image_shape, least_size(each.model, each.image_shape[2])
        image = "x".join(map(str, shape))
        show(line.format(name, image, least, *_shown(costs[name]), each.source))
    return costs


def print_weights(costs: Mapping[str, Cost]) -> None:
    """Print one line for each of the named weights; `costs` has the networks' costs by name."""
    width = max(map(len, NAMED))
    line = f"{{:<{width}}}  {{:>5}}  {{:>11}}  {{:>10}}  {{:>5}}  {{:>5}}  {{:<10}}  {{:<6}}  {{}}"
    heads = ("top-1", "MB", "licence", "loaded", "where")
    show(line.format("weights", "image", "parameters", "10^6 FLOPs", *heads))
    for name, each in NAMED.items():
        facts = (
            f"{each.top1:.1f}",
            each.megabytes,
            each.licence,
            "yes" if each.loaded else "never",
        )
        where = f"{each.source.place}: {each.source}"
        show(line.format(name, each.image_size, *_shown(costs[each.network]), *facts, where))


def _shown(total: Cost) -> tuple[str, str]:
    return f"{total.parameters:,}", f"{total.flops / 1e6:,.1f}"


if __name__ == "__main__":
    sys.exit(run_command(main))
