"""Prints every registered model: its image size, parameters, FLOPs and source.

python -m cnn_research.models

Parameters are those of training, auxiliary heads included; 10^6 FLOPs are of one image's forward
pass, a multiplication and an addition counting as two. `least` is the smallest height and width
that the model takes.
"""

from __future__ import annotations

import sys

from cnn_research.core.errors import UsageError, run_command
from cnn_research.models.flops import cost, least_size
from cnn_research.models.registry import architectures


def main(words: list[str]) -> None:
    """Print the table, line by line as it is counted; take no words but a call for help."""
    if words in (["--help"], ["-h"]):
        print(__doc__, end="")
        return
    if words:
        raise UsageError(f"`python -m cnn_research.models` takes no '{words[0]}'")
    found = architectures()
    line = f"{{:<{max(map(len, found))}}}  {{:<9}}  {{:>5}}  {{:>11}}  {{:>10}}  {{}}"
    print(line.format("model", "image", "least", "parameters", "10^6 FLOPs", "source"))
    for name, each in found.items():
        costs = cost(each.model, each.image_shape)
        shape, least = each.image_shape, least_size(each.model, each.image_shape[2])
        parameters, flops = f"{costs.parameters:,}", f"{costs.flops / 1e6:,.1f}"
        image = "x".join(map(str, shape))
        print(line.format(name, image, least, parameters, flops, each.source), flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
