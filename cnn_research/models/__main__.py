"""Prints every registered model: its image size, parameters, FLOPs and source.

python -m cnn_research.models

Parameters are those of training, auxiliary heads included; 10^6 FLOPs are of one image's forward
pass, a multiplication and an addition counting as two. `least` is the smallest height and width
that the model takes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from cnn_research.core.errors import UsageError, run_command
from cnn_research.models.flops import cost, least_size
from cnn_research.models.registry import architectures


def lines() -> Iterator[str]:
    """The table, line by line as it is counted: header first."""
    found = architectures()
    shapes = {name: "x".join(map(str, each.image_shape)) for name, each in found.items()}
    name_width, shape_width = max(map(len, found)), max(map(len, shapes.values()))

    def line(name: str, shape: str, least: str, parameters: str, flops: str, source: str) -> str:
        return (
            f"{name:<{name_width}}  {shape:<{shape_width}}  {least:>5}  {parameters:>11}  "
            f"{flops:>10}  {source}"
        )

    yield line("model", "image", "least", "parameters", "10^6 FLOPs", "source")
    for name, each in found.items():
        costs = cost(each.model, each.image_shape)
        yield line(
            name,
            shapes[name],
            str(least_size(each.model, each.image_shape[2])),
            f"{costs.parameters:,}",
            f"{costs.flops / 1e6:,.1f}",
            each.source,
        )


def main(words: list[str]) -> None:
    """Prints the table; takes no words but a call for help."""
    if words in (["--help"], ["-h"]):
        print(__doc__, end="")
        return
    if words:
        raise UsageError(f"`python -m cnn_research.models` takes no '{words[0]}'")
    for line in lines():
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
