"""Evaluates CIFAR-10 networks whose weights are PyTorch's files, on CIFAR-10 as JPEG files.

    python -m benchmarks.pretrained_cifar --output results/pretrained_cifar.json

The images were saved again as JPEG, which loses: the weights' published accuracies, on the
original images, are 0.9173 and 0.9339. What PyTorch gets on the same files is the target.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.results import ROOT, Measurement, arguments, row

EXPECTED = {
    "resnet20_cifar": ("resnet20-12fca82f.th", 0.8103),
    "resnet56_cifar": ("resnet56-4bfd9763.th", 0.8320),
}
"""By architecture: the file of weights, and PyTorch's accuracy."""
TOLERANCE = 2
"""Images of the 10,000."""


def evaluate(name: str, weights: Path, images: Path) -> tuple[int, int, str]:
    """Correct and counted test images of one network, and what was loaded."""
    import jax
    import numpy as np

    from cnn_research.core.distributed import data_mesh
    from cnn_research.data import Cifar10
    from cnn_research.models.pretrained import Pretrained, load_pretrained
    from cnn_research.models.registry import architectures
    from cnn_research.train.config import Training
    from cnn_research.train.evaluator import Evaluator

    experiment = Training(
        data=Cifar10(path=str(images)),
        model=architectures()[name].model,
        pretrained=Pretrained(str(weights)),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    dataset = experiment.data.load()
    model = experiment.task.bind(experiment.model, dataset)
    blank = np.zeros((1, *dataset.image_shape), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), blank)
    variables, loaded = load_pretrained(model, variables, experiment.pretrained)
    evaluated = Evaluator(experiment, model, data_mesh())(variables, dataset.splits["test"])
    assert evaluated is not None  # nobody asked it to stop
    correct, count = evaluated[0]["accuracy"]
    return int(correct), int(count), f"{len(loaded.loaded)} leaves of {weights.name}"


def main() -> int:
    parser = arguments(__doc__)
    shared = ROOT.parent / "shared" / "data"
    parser.add_argument("--weights", type=Path, default=shared / "weights", help="the folder")
    parser.add_argument("--images", type=Path, default=shared / "cifar10_jpeg.tar.xz")
    chosen = parser.parse_args()
    measurement = Measurement(
        "pretrained_cifar",
        what="test accuracy of PyTorch's weights on CIFAR-10 as JPEG files",
        target=f"PyTorch's on the same files, within {TOLERANCE} images",
    )
    rows, figures = [], {}
    for name, (file, expected) in EXPECTED.items():
        correct, count, loaded = evaluate(name, chosen.weights / file, chosen.images)
        figures[name] = {"correct": correct, "count": count, "loaded": loaded, "expected": expected}
        rows.append(
            row(
                f"accuracy of {name} with the weights {file} on the {count:,} JPEG test images",
                f"{expected:.4f} within {TOLERANCE} images",
                f"{correct / count:.4f}",
                abs(correct - expected * count) <= TOLERANCE + 1e-6,
            )
        )
    return measurement.finish(rows, figures, chosen.output)


if __name__ == "__main__":
    sys.exit(main())
