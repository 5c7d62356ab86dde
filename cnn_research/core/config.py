"""Configs: frozen dataclasses, written as JSON, read back by registered names, and hashed."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import io
import itertools
import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from cnn_research.core.definitions import import_definitions, import_plugins, is_own
from cnn_research.core.errors import UsageError, UserError

C = TypeVar("C")

HELP = ("--help", "-h", "-help", "-?")
"""Words that ask for help; `--help=PART` asks for a part of the fields."""


def with_fields(config: Any, values: Mapping[str, Any]) -> Any:
    """Replace fields of the config, given by their paths, as `flatten` has them:
    `optimizer.learning_rate`, or `callbacks.0.change` of a part in a tuple.

    Raises `UsageError` for a field that it does not have.
    """
    for path, value in values.items():
        name, _, rest = path.partition(".")
        parts = {field.name: getattr(config, field.name) for field in config_fields(config)}
        if isinstance(config, tuple):
            parts = {str(place): part for place, part in enumerate(config)}
        if name not in parts:
            near = did_you_mean(name, list(parts))
            raise UsageError(f"{type(config).__name__} has no field '{name}'{near}")
        changed = with_fields(parts[name], {rest: value}) if rest else value
        if isinstance(config, tuple):
            config = tuple((parts | {name: changed}).values())
        else:
            config = dataclasses.replace(config, **{name: changed})
    return config


def asks_for_help(word: str) -> bool:
    return word in HELP or word.startswith("--help=")


def parse_fields(
    default: C, words: list[str], command: str, description: str = "", flags: Sequence[str] = ()
) -> C:
    """Set the fields that `words` give; `--help` describes all fields and exits.

    Raises `UsageError` for a wrong value or field, with the nearest field or one of the command's
    own `flags`.
    """
    import tyro

    for word in filter(asks_for_help, words):
        from cnn_research.core.help import help_text

        asked = word.partition("=")[2]
        print(help_text(default, command, description or type(default).__doc__ or "", asked))
        raise SystemExit(0)
    fields = flatten(default).keys() - {"name"}
    for word in words:
        if word.startswith("--") and field_of(word, fields) is None:
            name = word.partition("=")[0].removeprefix("--").replace("_", "-")
            near = nearest_field(name, [*(f.replace("_", "-") for f in fields), *flags])
            raise UsageError(f"there is no field --{name}{near}; `{command} --help` shows all")
    box = io.StringIO()
    try:
        # A default of another type than its field's is an error later, and no warning now.
        with contextlib.redirect_stderr(box), warnings.catch_warnings(action="ignore"):
            return tyro.cli(type(default), default=default, args=words)
    except SystemExit as end:
        if not end.code:
            raise
    # A frame, of signs where a terminal has no lines, and a rule below the sentence.
    lines = [line.strip("│╭╮╰╯|+ ") for line in box.getvalue().splitlines()[1:]]
    begun = itertools.dropwhile(lambda line: not line.strip("─-"), lines)
    sentence = itertools.takewhile(lambda line: line.strip("─-"), begun)
    message = " ".join(" ".join(sentence).split()).rstrip(".")
    raise UsageError(f"{message}; --help shows all fields")


def field_of(word: str, fields: Collection[str]) -> str | None:
    """The path of the field, one of `fields`, that a word such as `--data.image-size=64` sets."""
    name = word.partition("=")[0].removeprefix("--").replace("-", "_")
    # A boolean field is negated at its last part: --evaluation.no-mirror.
    return next((path for path in (name, name.replace("no_", "", 1)) if path in fields), None)


def config_fields(config: Any) -> list[dataclasses.Field]:
    """The fields of a config, without those that flax adds to every module."""
    kind = config if isinstance(config, type) else type(config)
    if not dataclasses.is_dataclass(kind):
        return []
    added = ("parent", "name") if _is_module(kind) else ()
    return [f for f in dataclasses.fields(kind) if f.init and f.name not in added]


def _is_module(kind: type) -> bool:
    return any(base.__module__.startswith("flax.linen") for base in kind.__mro__)


_CONFIG_CLASSES: dict[str, type] = {}


def register_config(kind: type[C]) -> type[C]:
    """Register a config class, which saved configs name by its `__name__`, wherever it is defined.

    Only registered classes can be named, so that a config from elsewhere cannot run code. Defined
    again, as in a cell of a notebook, it replaces the class of before. A `UsageError` for what is
    no frozen dataclass, or if another class has that name.
    """
    if not is_own(kind.__module__):
        import_definitions()
    name, parameters = kind.__name__, vars(kind).get("__dataclass_params__")
    if not (parameters and (parameters.frozen or _is_module(kind))):
        raise UsageError(
            f"{name} is not a frozen dataclass: below @register_config, decorate it with "
            "@dataclasses.dataclass(frozen=True)"
        )
    known = _CONFIG_CLASSES.setdefault(name, kind)
    if not same_definition(known, kind):
        raise UsageError(
            f"a config class is already named {name}, in {known.__module__}: rename the one in "
            f"{kind.__module__}"
        )
    _CONFIG_CLASSES[name] = kind
    return kind


def same_definition(one: Any, other: Any) -> bool:
    """Return whether two classes or functions have the same place in the code."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


class UnknownClass(UserError):
    """A config names a class that is not registered."""


def config_class(name: str) -> type:
    """The registered config class of that name; an `UnknownClass` error if there is none."""
    for import_more in (import_definitions, import_plugins):
        if name not in _CONFIG_CLASSES:
            import_more()
    if name not in _CONFIG_CLASSES:
        raise UnknownClass(
            f"the config names the class '{name}', which is not registered"
            f"{did_you_mean(name, list(_CONFIG_CLASSES))}: nothing was run"
        )
    return _CONFIG_CLASSES[name]


def outside_modules(config: Any) -> set[str]:
    """The modules outside this project that define a config's classes."""
    values = config if isinstance(config, tuple) else ()
    parts = [*values, *(getattr(config, field.name) for field in config_fields(config))]
    found: set[str] = set().union(*map(outside_modules, parts))
    outside = dataclasses.is_dataclass(config) and not is_own(type(config).__module__)
    return found | {type(config).__module__} if outside else found


def to_dict(config: Any, path: str = "") -> Any:
    """A config as JSON values, dataclasses by registered names.

    A `UsageError` for anything else, which names the field by its path.
    """
    where = f"--{path.replace('_', '-')}" if path else "the config"
    if dataclasses.is_dataclass(config):
        name = type(config).__name__
        if _CONFIG_CLASSES.get(name) is not type(config):
            raise UsageError(
                f"{where} is of the class {name}, which cannot be written to a run's folder: "
                "decorate it with @register_config"
            )
        fields = [field.name for field in config_fields(config)]
        values = {f: to_dict(getattr(config, f), f"{path}.{f}".lstrip(".")) for f in fields}
        return {"class": name, **values}
    if isinstance(config, tuple):
        return [to_dict(value, path) for value in config]
    if isinstance(config, str | int | float | bool) or config is None:
        return config
    raise UsageError(
        f"{where} is {config!r}, which cannot be written to a run's folder: a config holds "
        "numbers, strings, tuples and dataclasses"
    )


def from_dict(values: Any) -> Any:
    """The config that `to_dict` wrote; a `UserError` for a class or field that no longer exists."""
    if isinstance(values, list):
        return tuple(from_dict(value) for value in values)
    if not isinstance(values, dict):
        return values
    name = values.get("class")
    if not isinstance(name, str):
        raise UserError(f"a part of the config names no class: {sorted(values)}")
    kind = config_class(name)
    fields = {key: from_dict(value) for key, value in values.items() if key != "class"}
    try:
        return kind(**fields)
    except TypeError as error:
        raise UserError(f"the config does not fit this version of {name}: {error}") from None


def canonical_json(config: Any) -> str:
    """The config as JSON with sorted keys: equal configs have equal texts."""
    return json.dumps(to_dict(config), indent=2, sort_keys=True) + "\n"


def config_hash(config: Any, default: Any = None) -> str:
    """Eight hexadecimal digits of the fields that differ from `default`.

    A field that is added later, with a default, therefore changes no hash. A config or part whose
    class differs from the default's is compared with the defaults of its own class.
    """
    text = json.dumps(differences(config, default), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def differences(config: Any, default: Any) -> Any:
    """The fields that differ, by name, as JSON values; other values as they are."""
    if not dataclasses.is_dataclass(config):
        return to_dict(config)
    same = type(config) is type(default)
    found: dict[str, Any] = {} if same else {"class": type(config).__name__}
    for field in config_fields(config):
        value = getattr(config, field.name)
        if same:
            before = getattr(default, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            before = field.default_factory()
        else:
            before = field.default
        if value != before:
            found[field.name] = differences(value, before)
    return found


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf field by its path: `{"optimizer.learning_rate": 0.001, ...}`."""
    leaves: dict[str, Any] = {}
    for field in config_fields(config):
        value = getattr(config, field.name)
        path = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            leaves |= flatten(value, f"{path}.")
        else:
            leaves[path] = value
            if isinstance(value, tuple):  # whose parts, such as callbacks, have fields, too
                for place, part in enumerate(value):
                    if dataclasses.is_dataclass(part):
                        leaves |= flatten(part, f"{path}.{place}.")
    return leaves


def did_you_mean(word: str, words: Sequence[str]) -> str:
    """` (did you mean 'x'?)` with the nearest of `words`, or nothing."""
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def nearest_field(name: str, fields: Sequence[str]) -> str:
    """As `did_you_mean`, for fields by their paths: their last parts also without the others, cut
    short (`--epoch`), or as initials (`--lr`, `--optimizer.lr`)."""
    last = name.rpartition(".")[2]

    def means(field: str) -> bool:
        part = field.rpartition(".")[2]
        initials = "".join(word[:1] for word in part.split("-"))
        return part.startswith(last) if len(last) > 2 else initials == last

    # Of several, the shortest path that begins in the same way.
    start = name.removesuffix(last)
    meant = sorted(filter(means, fields), key=lambda f: (not f.startswith(start), len(f), f))
    return f" (did you mean '{meant[0]}'?)" if meant else did_you_mean(name, fields)
