"""Update the tables of pages from results/*.json: `python -m benchmarks.readme_tables`.

A page marks a table with `<!-- table: accuracy -->` and `<!-- end -->`; the text between them is
replaced. Numbers on pages thus come from results files, which also have the command, commit and
machine. `--check` writes nothing, and exits with 1 if a page is out of date.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.own_images import network
from cnn_research.core.errors import UsageError, run_command
from cnn_research.core.experiment import Document, registry
from cnn_research.core.progress import duration
from cnn_research.report.change_log import change_log, log_as_markdown
from cnn_research.report.markdown import markdown_table, number
from cnn_research.report.runs import Group, Run, mean_and_deviation
from cnn_research.tasks.classification import Classification
from experiments.documents import CLASSIFIERS, CONVOLUTION, FASHION_MNIST, PAINTERS, PALETTE

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    *("README.md", "README.es.md"),
    *("docs/augmentation.md", "docs/comparison.md", "docs/documents.md", "docs/results.md"),
)
"""Those with tables."""
COLOURS = ("palettes", "palette_losses", "colour_names")
"""Results files of the palette paper."""
JPEG = "cifar10_jpeg_"
"""Runs on re-encoded CIFAR-10 images, which are harder; not comparable with others."""
NOTHING = "*Not measured yet.*"
TABLE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

Results = Mapping[str, Mapping[str, Any]]
"""The contents of each results file, by its name without `.json`."""

ACCURACIES = {
    "accuracy": "test accuracy",
    "validation accuracy": "validation accuracy",
    "training accuracy": "training accuracy",
}
"""Metrics of the first table: their names in results files, and in the documents' results."""
HEADLINES: Mapping[Document, Sequence[tuple[str, str]]] = {
    FASHION_MNIST: (
        ("fashion_mnist_cnn", "accuracy"),
        ("fashion_mnist_mlp", "accuracy"),
        ("fashion_mnist_best", "accuracy"),
    ),
    CLASSIFIERS: (
        ("products_t6", "accuracy"),
        ("products_best", "accuracy"),
        ("cifar10_exercise", "accuracy"),
        ("cifar10_best", "accuracy"),
    ),
    PAINTERS: (
        *((f"artworks_red{number}", "validation accuracy") for number in (1, 2, 3)),
        ("artworks_best", "validation accuracy"),
        ("artworks_linear", "validation accuracy"),
        ("artworks_linear", "accuracy"),
    ),
    CONVOLUTION: (("filters", ""), ("pooling_pyramid", ""), ("features", "")),
    PALETTE: (("palette", ""), ("colour_names", "")),
}
"""For each document, the experiments of the first table and the metric that represents each; those
without one draw pictures, or have a measurement of their own."""
ENGLISH = {
    "header": "document|experiment|metric|reported|ours",
    FASHION_MNIST.subject: "Fashion-MNIST, with and without convolution",
    CLASSIFIERS.subject: "Classifiers: a training log of products, CIFAR-10",
    PAINTERS.subject: "Who painted it? 50 artists",
    CONVOLUTION.subject: "Convolution, from signals to pretrained networks",
    PALETTE.subject: "A palette of ten colours from an image",
}
SPANISH = {
    "header": "documento|experimento|métrica|publicado|nuestro",
    FASHION_MNIST.subject: "Fashion-MNIST, con y sin convolución",
    CLASSIFIERS.subject: "Clasificadores: un registro con productos, CIFAR-10",
    PAINTERS.subject: "¿Quién lo pintó? 50 artistas",
    CONVOLUTION.subject: "La convolución, de las señales a las redes preentrenadas",
    PALETTE.subject: "Una paleta de diez colores a partir de una imagen",
    "test accuracy": "exactitud en test",
    "validation accuracy": "exactitud en validación",
    "training accuracy": "exactitud en entrenamiento",
    "pictures": "imágenes",
    "colour error, times k-means'": "error de color, respecto a k-medias",
    "balanced accuracy of 11 names": "exactitud balanceada, 11 nombres",
}

OWN_IMAGES = {
    "header": "images|network|test images|test accuracy|without weights|minutes|memory, GB",
    "from scratch": "from scratch",
    "pets": "cats and dogs, 1,200 photographs",
    "artworks": "paintings by 50 artists",
    "cifar10": "CIFAR-10",
    "fashion_mnist": "Fashion-MNIST",
    "products": "products of 43 types",
}
IMAGENES = {
    "header": "imágenes|red|imágenes de test|exactitud en test|sin pesos|minutos|memoria, GB",
    "from scratch": "desde cero",
    "pets": "gatos y perros, 1200 fotografías",
    "artworks": "cuadros de 50 artistas",
    "cifar10": "CIFAR-10",
    "fashion_mnist": "Fashion-MNIST",
    "products": "productos de 43 tipos",
}


def documents(results: Results, words: Mapping[str, str] = ENGLISH) -> str:
    """Selected experiments of each document, beside the metrics that it reports.

    Args:
        results: an experiment without results has no row, unless it draws pictures.
        words: the header, the documents' titles, and other names for the metrics.
    """
    rows = []
    for document, experiments in HEADLINES.items():
        title = words[document.subject]
        for name, metric in experiments:
            if metric:
                found = _headline(results.get(name, {}), metric)
            elif document == CONVOLUTION:
                found = ("pictures", "", "")
            else:
                found = _of_colours(name, results)
            if found is not None:
                what, theirs, ours = found
                rows.append((title, f"`{name}`", words.get(what, what), theirs, ours))
                title = ""
    return markdown_table(words["header"].split("|"), rows)


def _headline(result: Mapping[str, Any], metric: str) -> tuple[str, str, str] | None:
    """The metric's name, the document's value and ours; None without results."""
    values = result.get("figures", {}).get(metric, {}).get("values")
    if not values:
        return None
    return ACCURACIES[metric], _reported(result, ACCURACIES[metric]), mean_and_deviation(values)


def _reported(result: Mapping[str, Any], metric: str) -> str:
    """The document's value of a metric, with the digits that it has there."""
    theirs = result["document_results"].get(metric)
    return "" if theirs is None else f"{theirs:g}"


def _of_colours(name: str, results: Results) -> tuple[str, str, str] | None:
    """Of the palette paper, which reports no metrics."""
    if name == "palette" and "palettes" in results:
        ratio = results["palettes"]["figures"]["pixels"]["ratio to k-means in Lab"]
        return "colour error, times k-means'", "", f"{ratio:.3f}"
    if name == "colour_names" and name in results:
        rounds = results[name]["figures"]["test accuracy of each round"]["0.0"]
        last = [values[-1] for values in rounds]
        return "balanced accuracy of 11 names", "", mean_and_deviation(last)
    return None


def of_document(document: Document, results: Results) -> str:
    """The accuracies of each experiment that implements a document, beside the document's."""
    rows = []
    for name, entry in registry().items():
        result = results.get(name, {})
        if entry.document != document or "document_results" not in result:
            continue
        for metric, called in ACCURACIES.items():
            values = result["figures"].get(metric, {}).get("values", [])
            theirs = _reported(result, called)
            if values and (theirs or metric == "accuracy"):
                ours = mean_and_deviation(values)
                rows.append((f"`{name}`", called, str(len(values)), theirs, ours))
    return markdown_table(("experiment", "metric", "runs", "reported", "ours"), rows)


def own_images(results: Results, words: Mapping[str, str] = OWN_IMAGES) -> str:
    """What `image_folder` reaches by itself, from own_images_*.json."""
    rows = []
    for name, result in results.items():
        ways = result["figures"].get("runs", {}) if name.startswith("own_images_") else {}
        if "as_it_is" not in ways:
            continue
        runs, folder = ways["as_it_is"], result["figures"]["folder"]
        plain = [run["test"]["accuracy"] for run in ways.get("none", ())]
        name = network(runs[0])
        rows.append(
            (
                words.get(folder, folder),
                words.get(name, f"`{name}`"),
                f"{runs[0]['test']['count']:,}",
                mean_and_deviation([run["test"]["accuracy"] for run in runs]),
                mean_and_deviation(plain),
                f"{max(run['minutes'] for run in runs):.0f}",
                f"{max(run['gigabytes'] for run in runs):.1f}",
            )
        )
    return markdown_table(words["header"].split("|"), rows)


def peers(results: Results) -> str:
    """The same task by this project and by another, from the measurements that compare them."""
    rows = []
    for name, result in results.items():
        if not name.startswith("own_images_peers_"):
            continue
        for peer, peer_name in (("pytorch", "PyTorch"), ("keras", "Keras")):
            if peer in result["figures"]:
                ours, theirs = (result["figures"][peer][who] for who in ("ours", "theirs"))
                here = f"{ours['test']['accuracy']:.4f}, {ours['minutes']:.1f} minutes"
                there = f"{theirs['accuracy']:.4f}, {theirs['minutes']:.1f} minutes"
                task = f"test accuracy on {result['figures']['folder']}, same weights and files"
                rows.append((task, peer_name, here, there))
    for model, found in results.get("train_speed", {}).get("figures", {}).get("models", {}).items():
        steps, mode = found["milliseconds_a_step"], found["best_of_pytorch"]
        times = (f"{steps[way]['median']:.0f} ms" for way in ("jax", mode))
        rows.append((f"training step of `{model}`", "PyTorch", *times))
    for name, found in results.get("pretrained_cifar", {}).get("figures", {}).items():
        error = f"{100 * found['wrong'] / found['count']:.2f} %"
        published = f"{found['published error']:.2f} %"
        task = f"CIFAR-10 test error of `{name}`, published weights"
        rows.append((task, "their authors (PyTorch)", error, published))
    errors = results.get("palettes", {}).get("figures", {}).get("pixels", {}).get("mean", {})
    for peer in ("k-means in Lab", "median cut", "ColorThief"):
        if errors:
            both = (f"{errors[who]:.2f}" for who in ("network", peer))
            rows.append(("colour error of a palette, CIEDE2000", peer, *both))
    return markdown_table(("task", "peer", "ours", "peer's"), rows)


def colours(results: Results) -> str:
    """Measurements of palettes and colour names."""
    return robustness({name: results[name] for name in COLOURS if name in results})


def promises(results: Results) -> str:
    """Targets and measurements, except those of colours."""
    return robustness({name: r for name, r in results.items() if name not in COLOURS})


def accuracy(results: Results) -> str:
    """Test figures over seeds beside the document's, from `cnn_research.report --output`."""
    header = (
        "experiment",
        "runs",
        "reported",
        "accuracy",
        "precision",
        "recall",
        "F1",
        "fastest run",
    )
    rows = []
    for name, result in results.items():
        figures = result.get("figures", {})
        # The rows of the products log have tables of their own.
        logged = name.startswith((JPEG, "products_"))
        if "accuracy" not in figures or "document_results" not in result or logged:
            continue
        theirs = result["document_results"].get("test accuracy")
        shown = ("accuracy", "macro precision", "macro recall", "macro F1")
        rows.append(
            (
                name,
                str(len(result["seeds"])),
                "" if theirs is None else f"{theirs:.4f}",
                *(mean_and_deviation(figures.get(n, {}).get("values", [])) for n in shown),
                duration(min(result["wall_seconds_of_runs"])),
            )
        )
    return markdown_table(header, rows)


def regression(results: Results) -> str:
    """Test errors over seeds beside those of always predicting the training mean."""
    shown = ("MAE", "MAE of the training mean", "RMSE", "RMSE of the training mean", "R2")
    rows = [
        (
            name,
            str(len(result["seeds"])),
            *(mean_and_deviation(result["figures"][figure]["values"]) for figure in shown),
            duration(min(result["wall_seconds_of_runs"])),
        )
        for name, result in results.items()
        if "MAE" in result.get("figures", {})
    ]
    return markdown_table(("experiment", "runs", *shown, "fastest run"), rows)


def speed(results: Results) -> str:
    """Milliseconds a training step beside PyTorch's fastest mode, from train_speed.json."""
    rows = []
    for model, result in (
        results.get("train_speed", {}).get("figures", {}).get("models", {}).items()
    ):
        medians = {mode: f"{m['median']:.1f}" for mode, m in result["milliseconds_a_step"].items()}
        mode, ratio = result["best_of_pytorch"], result["times_as_fast"]
        times_as_fast = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        kept = result.get("pytorch_with_kept_memory")
        times_with_kept = f"{kept['times_as_fast']['median']:.2f}" if kept else "the same"
        rows.append(
            (model, medians["jax"], f"{medians[mode]} ({mode})", times_as_fast, times_with_kept)
        )
    header = ("model", "ours, ms", "PyTorch, ms (mode)", "times as fast")
    return markdown_table((*header, "if PyTorch keeps memory too"), rows)


def robustness(results: Results) -> str:
    """All rows of results files with a target and a measured value."""
    rows = [
        (
            row["what"],
            row["target"],
            row["measured"] + ("" if row.get("met", True) else " (missed)"),
        )
        for result in results.values()
        for row in result.get("rows", [])
        if {"what", "target", "measured"} <= row.keys()
    ]
    return markdown_table(("what", "target", "measured"), rows)


def cifar10_changes(results: Results) -> str:
    """The log of the CIFAR-10 exercise on the JPEG copies, one change per row."""
    groups = groups_of(results, f"{JPEG}exercise")
    return log_as_markdown(change_log(groups)) if groups else ""


def _with_fields_of(other: Any, config: Any) -> Any:
    """Restrict a config to the fields of another one, of another version of the code."""
    if not isinstance(config, Mapping):
        return config
    kind = config.get("class", "")
    like = other if isinstance(other, Mapping) and other.get("class", "") == kind else config
    fields = {name: _with_fields_of(like[name], config.get(name, like[name])) for name in like}
    return {**fields, "class": kind.rpartition(".")[2]}


def groups_of(results: Results, prefix: str) -> list[Group]:
    """The runs of all results files whose names start with a prefix."""
    chosen = {name: result for name, result in sorted(results.items()) if name.startswith(prefix)}
    groups = []
    for name, result in chosen.items():
        first = next(iter(chosen.values()))["config"]
        figures = {figure: told["values"] for figure, told in result["figures"].items()}
        runs = [
            Run(
                folder=Path(name),
                config=_with_fields_of(first, result["config"]),
                record={**result, "wall_seconds": seconds},
                metrics={figure: values[index] for figure, values in figures.items()},
                directions=result.get("metric_directions", Classification().directions),
            )
            for index, seconds in enumerate(result["wall_seconds_of_runs"])
        ]
        groups.append(Group(name, runs))
    return groups


def painters(results: Results) -> str:
    """The painters paper's networks: accuracy in training and validation, beside the paper's."""
    header = ("experiment", "runs", "training", "reported", "validation", "reported", "macro F1")
    rows = []
    for group in groups_of(results, "artworks_red"):
        values, theirs = group.values(), group.document
        cells = [group.name, str(len(group.runs))]
        for name in ("training accuracy", "validation accuracy"):
            cells += [mean_and_deviation(values[name]), number(theirs.get(name))]
        rows.append((*cells, mean_and_deviation(values["validation macro F1"])))
    return markdown_table(header, rows)


def products_log(results: Results) -> str:
    """The products log: accuracies of each head on source and target, and the lecture's."""
    heads = ("material", "type", "brand", "")
    names = [f"{head} accuracy".strip() for head in heads]
    header = ["run", "pixels", *(f"{head or 'mean'}" for head in heads)]
    header += [f"target {head or 'mean'}" for head in heads] + ["mean, seen labels"]
    rows = []
    for group in groups_of(results, "products_"):
        if "accuracy" not in group.runs[0].metrics:
            continue  # a regression
        values, theirs = group.values(), group.document
        pixels = "x".join(map(str, group.runs[0].config["data"]["image_size"]))
        shown = [*names, *(f"target {name}" for name in names)]
        means = [_mean(values.get(name)) for name in (*shown, "target accuracy of seen labels")]
        rows.append([group.name, pixels, *means])
        if theirs:
            reported = (number(theirs.get(name)) for name in shown)
            rows.append(["- reported", "", *reported, ""])
    return markdown_table(header, rows)


def _mean(values: Sequence[float] | None) -> str:
    return f"{statistics.fmean(values):.3f}" if values else ""


def architectures(results: Results) -> str:
    """A training step of each architecture, from architectures.json."""
    rows = []
    for name, found in results.get("architectures", {}).get("figures", {}).items():
        size = "x".join(map(str, found["image_shape"]))
        if "failed" in found:
            rows.append((name, size, "", found["failed"], ""))
            continue
        rows.append(
            (
                name,
                size,
                f"{found['parameters']:,}",
                f"{found['steps_per_second']:.2f}",
                f"{found['peak_bytes'] / 1e9:.1f}",
            )
        )
    header = ("network", "images", "parameters", "steps a second, batch 8", "peak memory, GB")
    return markdown_table(header, rows)


def augmentation(results: Results) -> str:
    """Cost of each augmentation in a train step, from augmentation.json."""
    figures = results.get("augmentation", {}).get("figures")
    if not figures:
        return ""
    rows = [
        (
            name,
            f"{added:.1f}",
            f"{figures['share_of_the_plain_step'][name]:.1%}",
            f"{figures['milliseconds_alone'][name]:.1f}",
        )
        for name, added in figures["milliseconds_added"].items()
    ]
    return markdown_table(("change", "ms added", "of the step", "ms alone"), rows)


def studies(results: Results) -> str:
    """Test accuracy of each kind of pooling, on images shifted horizontally."""
    shown = (0, 2, 4, 8)
    rows = []
    for name, result in results.items():
        study = result.get("figures", {}).get("study")
        if study is None:
            continue
        for kind, seeds in study["accuracy"].items():
            cells = [
                [
                    statistics.fmean(values[study["shifts"].index(way)] for way in (-shift, shift))
                    for values in seeds
                ]
                if shift in study["shifts"]
                else []
                for shift in shown
            ]
            rows.append((name, kind, str(len(seeds)), *map(mean_and_deviation, cells)))
    moved = [f"shifted by {shift}" for shift in shown if shift]
    return markdown_table(("experiment", "pooling", "runs", "test accuracy", *moved), rows)


TABLES: Mapping[str, Callable[[Results], str]] = {
    "accuracy": accuracy,
    "architectures": architectures,
    "augmentation": augmentation,
    "cifar10_changes": cifar10_changes,
    "painters": painters,
    "products_log": products_log,
    "regression": regression,
    "speed": speed,
    "robustness": promises,
    "studies": studies,
    "documents": documents,
    "documentos": functools.partial(documents, words=SPANISH),
    "colours": colours,
    "own_images": own_images,
    "imagenes": functools.partial(own_images, words=IMAGENES),
    "peers": peers,
    "painters_paper": functools.partial(of_document, PAINTERS),
    "classifier_lecture": functools.partial(of_document, CLASSIFIERS),
    "fashion_mnist_paper": functools.partial(of_document, FASHION_MNIST),
}


def with_tables(page: str, text: str, results: Results) -> str:
    """Update the tables of a page's text.

    Raises:
        UsageError: a table is unknown, or is not ended.
    """

    def table(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        if name not in TABLES:
            raise UsageError(f"{page}: no table is named '{name}'; use {', '.join(TABLES)}")
        made = TABLES[name](results)
        return f"{start}{made if len(made.splitlines()) > 2 else NOTHING}\n{end}"

    if text.count("<!-- table:") != text.count("<!-- end -->"):
        raise UsageError(f"{page}: not every '<!-- table: NAME -->' has its '<!-- end -->'")
    return TABLE.sub(table, text)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """The command; returns its exit code: 1 if `--check` finds a page out of date."""
    return run_command(lambda words: update(words, root), arguments)


def update(arguments: list[str], root: Path) -> int:
    """Update or check all pages; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme_tables")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if out of date")
    check = parser.parse_args(arguments).check
    pages = {page: root / page for page in PAGES if (root / page).exists()}
    results = {
        file.stem: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted((root / "results").glob("*.json"))
    }
    old = {page: file.read_text(encoding="utf-8") for page, file in pages.items()}
    new = {page: with_tables(page, text, results) for page, text in old.items()}
    stale = [page for page in pages if new[page] != old[page]]
    if check and stale:
        print(
            f"out of date: {', '.join(stale)}; run `python -m benchmarks.readme_tables`",
            file=sys.stderr,
        )
        return 1
    for page in stale:
        pages[page].write_text(new[page], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
