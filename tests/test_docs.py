"""The pages: their links and commands are there, and what they promise works as it stands."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.util
import io
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from absl.testing import flagsaver
from PIL import Image

from cnn_research.cli import main as cli
from cnn_research.cli.fields import LAUNCHER_FLAGS, with_overrides
from cnn_research.cli.program import COMMANDS
from cnn_research.cli.run import modes_of
from cnn_research.core.experiment import lookup, registry

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "README.es.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
PROGRAMS = {
    *("pip", "ruff", "mypy", "tensorboard", "curl", "taskset", "sbatch", "hf"),
    *("cd", "sha256sum", "."),
}
"""What commands begin with that are not this project's."""


def blocks(page: Path) -> list[str]:
    """The contents of a page's bash blocks."""
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.M)


def commands(page: Path) -> Iterator[list[str]]:
    """Every command of a page, as words, without the environment's folder."""
    for line in "".join(blocks(page)).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for last, part in itertools.groupby(words, lambda word: word == "&&"):
            if not last:
                bare = (word.removeprefix(".venv/bin/") for word in part)
                yield [*itertools.dropwhile(re.compile(r"[A-Z_]+=").match, bare)]


def ids(file: Path) -> str:
    return file.name


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub and the site link them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            file = page.parent / name if name else page
            assert file.exists(), target
            assert not anchor or file.suffix != ".md" or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_what_is_named_in_the_text_is_there(page):
    named = re.findall(r"`([^`\n]+)`", without_code(page))
    folders = ("docs/", "tests/", "benchmarks/", "experiments/", "cnn_research/", "results/")
    for words in named:
        if words.startswith(folders) and not re.search(r"NAME|[*\s]", words):
            assert (ROOT / words).exists(), words
        if words.startswith("python -m "):
            assert importlib.util.find_spec(words.split()[2]), words
        if re.fullmatch(r"python \S+\.py", words):
            assert (ROOT / words.split()[1]).exists(), words


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_are_there(page):
    modes = {mode for entry in registry().values() for mode in modes_of(entry.experiment())}
    for words in commands(page):
        if words[:2] in (["python", "-m"], ["python3", "-m"]):
            check_module(words[2], words[3:])
        elif words[0] == "cnn-research" or words[:2] == ["python", "-c"]:
            pass  # the same as launch.py, which is checked; Keras' own
        elif "launch.py" in words:
            check_launch(words[words.index("launch.py") + 1 :], modes)
        elif words[0] == "python":
            assert (ROOT / words[1]).exists(), words
        else:
            assert words[0] in PROGRAMS, words


HELPED = ("data", "report", "serve", "sweep")
"""Programs of the package that have flags."""


@functools.cache
def help_of(program: str) -> str:
    """What a program of the package prints for `--help`."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        importlib.import_module(COMMANDS[program]).main(["--help"])
    return printed.getvalue()


def check_module(module: str, words: list[str]) -> None:
    """The module exists, and the help of a program of the package has its flags."""
    assert importlib.util.find_spec(module), module
    package, _, program = module.partition(".")
    if package == "cnn_research" and not program:
        program, *words = words
    if package != "cnn_research" or program not in HELPED or "--help" in words:
        return
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    unknown = {flag for flag in flags if flag not in help_of(program)}
    if program == "sweep":
        if "--import" in flags:
            return  # as in `check_launch`
        experiment = [w.partition("=")[2] for w in words if w.startswith("--experiment=")]
        fields = [word for word in words if word.partition("=")[0] in unknown]
        check_launch([f"--experiment={name}" for name in experiment[:1]] + fields, set())
        grids = [w.split("=", 2)[1:] for w in words if w.startswith("--grid=")]
        for field, values in grids:
            shown = values.split(",")[0].split()
            check_launch([f"--experiment={experiment[0]}", f"--{field}", *shown], set())
    else:
        assert not unknown, words


def check_launch(words: list[str], modes: set[str]) -> None:
    """Names, modes and fields exist, and values are of their types; no data is looked at."""
    flags, fields = {}, []
    if words and words[0] in registry():
        words = [f"--experiment={words[0]}", *words[1:]]
    for word in words:
        name, _, value = word.partition("=")
        if name.removeprefix("--") in LAUNCHER_FLAGS:
            flags[name.removeprefix("--")] = value
        elif word != "--help":
            fields.append(word)
    assert not modes or flags.get("mode") in (None, *modes), words
    if "import" in flags:
        return  # the reader's own experiment, which is not here
    # Of a run's folder nobody knows here what it holds: fields are as most trainings have them.
    experiment = lookup(flags.get("experiment", "image_folder")).experiment()
    with_overrides(experiment, fields).check()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_python_of_pages_imports_what_is_there(page):
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.M):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("cnn_research"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), node.module


def test_the_spanish_readme_has_the_same_commands():
    assert blocks(ROOT / "README.es.md") == blocks(ROOT / "README.md")


def test_citation_has_what_the_format_asks_for():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= found.keys()
    version = re.search(r"^version = (.+)$", (ROOT / "setup.cfg").read_text(), re.M)
    assert found["version"] == version.group(1)
    assert found["license"] == "Apache-2.0"


def test_pictures_are_small():
    pictures = [*(ROOT / "docs" / "pictures").iterdir()]
    assert all(picture.stat().st_size < 100_000 for picture in pictures if picture.suffix == ".png")
    assert sum(picture.stat().st_size for picture in pictures) < 900_000


# The page about one's own images -----------------------------------------------------------------

SMALL = ["--epochs=1", "--batch-size=16", "--model.features", "4", "4", "4"]
QUICK = {
    "--experiment=image_folder": SMALL,
    "--experiment=image_table": SMALL,
    "--experiment=features": ["--search=16", "--units=2", "--layers=1"],
}
"""What is added to the page's commands so that they take seconds."""


@pytest.fixture
def fruit(tmp_path, monkeypatch):
    """A folder with what the page says is in it: `fruit/`, `fruit.csv` and `new_images/`."""
    random = np.random.default_rng(0)
    rows = ["image,kind"]
    (tmp_path / "new_images").mkdir()
    for name, colour in (("apple", 60), ("pear", 160)):
        (tmp_path / "fruit" / name).mkdir(parents=True)
        for number in range(24):
            pixels = random.integers(colour, colour + 60, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "fruit" / name / f"{number}.png")
            rows.append(f"fruit/{name}/{number}.png,{name}")
        Image.fromarray(pixels).save(tmp_path / "new_images" / f"{len(name) - 4}.png")
    (tmp_path / "fruit.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path


@pytest.mark.slow
def test_own_images_page_works_as_it_stands(fruit, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    server, answer = None, ""
    try:
        for words in commands(ROOT / "docs" / "own_images.md"):
            words = [word.replace("8000", port) for word in words]
            if words[:2] == ["python", "launch.py"]:
                quick = [extra for word in words for extra in QUICK.get(word, [])]
                with flagsaver.flagsaver():
                    cli.main(cli.parse_flags([*words[1:], *quick]))
            elif words[2:4] == ["cnn_research", "serve"]:
                pytest.importorskip("fastapi", reason="serving needs the extra [serve]")
                server = subprocess.Popen(
                    [sys.executable, *words[1:]], env={**os.environ, "PYTHONPATH": str(ROOT)}
                )
                wait_for(int(port), server)
            elif words[0] == "python":
                monkeypatch.setattr(sys, "argv", words[2:])
                with pytest.raises(SystemExit) as end:
                    runpy.run_module(words[2], run_name="__main__")
                assert not end.value.code
            elif words[0] == "curl" and shutil.which("curl"):
                ended = subprocess.run(words, capture_output=True, text=True, check=True)
                answer = ended.stdout
    finally:
        if server is not None:
            server.terminate()
            server.wait(30)
    assert answer == "" or json.loads(answer)["predictions"][0]["file"] == "1.png"
    for made in (
        *("report/report.md", "predictions/predictions.csv", "export/SHA256SUMS"),
        *("../fruit_features/report/report.md", "../kinds/report/report.md"),
    ):
        assert (fruit / "runs" / "fruit" / made).exists(), made


def wait_for(port: int, server: subprocess.Popen) -> None:
    """Until the server takes connections."""
    until = time.monotonic() + 120
    while time.monotonic() < until and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the server does not answer")


# Notebooks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=ids)
def test_notebooks_are_committed_without_outputs(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=ids)
def test_notebooks_run(notebook, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="running notebooks needs nbclient")
    pytest.importorskip("ipykernel", reason="running notebooks needs ipykernel")
    import nbformat

    content = nbformat.read(notebook, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    done = nbclient.NotebookClient(content, timeout=300, resources=where).execute()
    pictures = [
        output
        for cell in done.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 2
