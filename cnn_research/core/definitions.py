"""Imports of modules that register classes, networks and experiments: this project's packages,
installed packages with an entry point, and modules or files given by `--import`.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import shlex
import sys
import sysconfig
import traceback
from importlib import metadata
from pathlib import Path

from absl import logging

from cnn_research.core.errors import UsageError, UserError, one_line

DEFINITIONS = ("cnn_research.experiments", "cnn_research.models", "cnn_research.data.sources")
"""Packages that define the classes of saved configs. The first one imports most of them; the others
add models and sources that no experiment uses."""

PLUGINS = "cnn_research.plugins"
"""Entry-point group in which installed packages list the modules to import."""

_IMPORTED: dict[str, str] = {}
"""Modules imported by `import_outside`, with the argument that imported them."""


def import_modules(package: str) -> None:
    """Import all modules of a package, which register their definitions."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(module.name)


@functools.cache
def import_definitions() -> None:
    """Import all definitions of this project, so that code from outside cannot take their names."""
    for package in DEFINITIONS:
        import_modules(package)


@functools.cache
def import_plugins() -> None:
    """Import the modules that installed packages list; warn if one fails."""
    for point in metadata.entry_points(group=PLUGINS):
        package = point.dist.name if point.dist else "an installed package"
        try:
            import_outside(point.module)
        except UserError as error:
            logging.warning("the plugin '%s' of %s: %s", point.name, package, one_line(error))


def is_own(module: str) -> bool:
    """Return whether a module is part of this project."""
    return module.partition(".")[0] == __name__.partition(".")[0]


def import_outside(name: str) -> None:
    """Import a module, or a file whose name ends in `.py`, which registers its definitions.

    Modules are also searched for in the current folder. A file is imported as the module of its
    name, and can import other files in its folder. Raises `UsageError` if the import fails.
    """
    import_definitions()
    is_file = name.endswith(".py")
    place = Path(name).expanduser().resolve()
    if is_file and not place.is_file():
        raise UsageError(f"--import={name}: the file does not exist")
    folder = str(place.parent if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # at the end, so that its files hide no other modules
    before = set(sys.modules)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(place.stem if is_file else name)
    except (Exception, SystemExit) as error:
        raise UsageError(f"--import={name} fails: {error_with_place(error)}") from error
    file = getattr(module, "__file__", None)
    if is_file and (file is None or Path(file).resolve() != place):
        raise UsageError(
            f"--import={name}: another module is called '{place.stem}' ({file or 'built in'}): "
            "rename the file"
        )
    new = sys.modules.keys() - before
    _IMPORTED.update(dict.fromkeys(new, str(place) if is_file else import_of(name)))


def import_of(module: str) -> str:
    """Return the argument of `--import` for an imported module.

    This is the full path of a file; the name of an installed module or of one in a package; or
    `__main__` for a notebook.
    """
    if module in _IMPORTED:
        return _IMPORTED[module]
    file = file_of(module)
    if file is None or "." in module or file.name == "__init__.py" or _is_installed(str(file)):
        return module
    return str(file)


def file_of(module: str) -> Path | None:
    """Return the source file of an imported module; None for a notebook."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).resolve() if file and file.endswith(".py") else None


def how_to_import(imports: list[str]) -> str:
    """Advise how to define missing names, given the imports that a run recorded."""
    if "__main__" in imports:
        return "it is defined in a notebook or program: move it to a file, and add --import=FILE.py"
    flags = " ".join(f"--import={shlex.quote(name)}" for name in imports)
    return f"add {flags or '--import=MODULE or FILE.py'}; in Python, import it first"


def error_with_place(error: BaseException) -> str:
    """Describe an error of code from outside in one line, with the last line of that code."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    ours = f"{Path(__file__).parents[1]}{os.sep}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not (frame.filename.startswith(("<frozen", ours)) or _is_installed(frame.filename))
    ]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{kind}{one_line(error)}{where}"


def _is_installed(file: str) -> bool:
    """Return whether a file belongs to the standard library or an installed package."""
    places = (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    return file.startswith(tuple(f"{place}{os.sep}" for place in places))
