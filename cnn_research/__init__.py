"""Convolutional networks in JAX and Flax: one runner, every experiment a registered config.

`import cnn_research as cr` provides all that a notebook needs; names are imported on first use:

    experiment = cr.with_fields(cr.experiment("digits_cnn"), {"optimizer.learning_rate": 3e-3})
    result = cr.train(experiment, "runs/digits")
    model = cr.load("runs/digits")
    model.predict(images)
"""

import importlib
import types
from typing import Any

from cnn_research import train

_PLACES = {
    "cli.run": ("run", "MODES", "Mode"),
    "core.config": ("flatten", "register_config", "with_fields"),
    "core.errors": ("UsageError", "UserError"),
    "core.experiment": ("Experiment", "Result", "experiment", "register", "registry"),
    "core.ranges": ("Range",),
    "data.augmentation.config": ("Augmentation",),
    "data.dataset": ("Dataset", "Split"),
    "data.sources.folder": ("ImageFolder",),
    "data.sources.official": ("Cifar10", "FashionMnist"),
    "data.sources.scikit_learn": ("Digits",),
    "data.sources.table": ("ImageTable",),
    "inference.exported": ("open_export",),
    "models.convnet": ("ConvNet",),
    "models.pretrained": ("Pretrained",),
    "models.registry": ("architectures", "register_model"),
    "report.loggers": ("Logger", "MLflow", "Mirror", "TensorBoard", "WandB"),
    "tasks.classification": ("Classification",),
    "tasks.multi_head": ("MultiHead",),
    "tasks.regression": ("Regression",),
    "tasks.several_labels": ("SeveralLabels",),
    "tasks.task": ("Task",),
    "train.by_name": ("with_pretrained",),
    "train.callbacks": ("Callback", "View"),
    "train.config": ("Evaluation", "Selection", "Training"),
    "train.optimizers": ("Optimizer", "OptimizerConfig", "Penalty"),
    "train.trained": ("TrainedModel", "load"),
    "train.transfer": ("Transfer",),
}
"""Public names by module."""
_MODULE_OF = {name: f"{__name__}.{place}" for place, names in _PLACES.items() for name in names}

__all__ = [*sorted(_MODULE_OF), "train"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `--help` is fast."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    globals()[name] = value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Train(types.ModuleType):
    """The package `train`, which can also be called to train."""

    def __call__(self, experiment: Any, workdir: Any, **options: Any) -> Any:
        """Train an experiment in a folder, or resume it; see `run` for the options."""
        return __getattr__("run")(experiment, workdir, "train", **options)


train.__class__ = _Train
