"""Exports on the Hugging Face hub.

    python -m cnn_research.inference.hub push FOLDER OWNER/NAME
    python -m cnn_research.inference.hub pull OWNER/NAME FOLDER

`push` makes the repository if there is none, private with `--private`; it needs a token in
`HF_TOKEN`, or of `hf auth login`. What is pushed and what is pulled is checked file by file.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnn_research.core.errors import UsageError, UserError, one_line, run_command
from cnn_research.core.run_folder import whole_folder
from cnn_research.inference import exported


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Puts an export on the hub, and returns its address.

    Raises:
        UserError: the folder is no whole export, there is no token, or the hub does not take it.
    """
    import huggingface_hub as hub

    exported.check(folder)
    if hub.get_token() is None:
        raise UserError(
            "pushing needs a token of the Hugging Face hub: put it in HF_TOKEN, or run "
            "`hf auth login`"
        )
    try:
        api = hub.HfApi()
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Export of a trained network"
        )
    except Exception as error:
        raise _said(error, repository) from error
    return str(address)


def pull(repository: str, folder: Path) -> None:
    """Fetches an export from the hub, whole or not at all.

    Raises:
        UsageError: the folder is there already.
        UserError: there is no such repository, no network, or no whole export.
    """
    import huggingface_hub as hub

    if folder.exists():
        raise UsageError(f"{folder} is there already: name another folder")
    with whole_folder(folder) as partial:
        try:
            hub.snapshot_download(repository, local_dir=partial)
        except Exception as error:
            shutil.rmtree(partial)
            raise _said(error, repository) from error
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # the hub's own
        try:
            exported.check(partial)
        except UserError as error:
            shutil.rmtree(partial)
            raise UserError(f"{repository} holds no whole export: {error}") from error


def _said(error: Exception, repository: str) -> UserError:
    """The hub's error, of which there are dozens, in one line with what to do."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"'{repository}' is no name on the hub: write OWNER/NAME")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"the hub has no repository {repository} that you may see: check the name, and for a "
            "private one the token in HF_TOKEN"
        )
    if status in (401, 403):
        return UserError(
            f"the hub does not let you write to {repository}: check the owner, and that the token "
            "in HF_TOKEN may write"
        )
    return UserError(
        f"{repository}: the hub cannot be reached or does not answer as it should: check the "
        f"network, and try again ({one_line(error)[:200]})"
    )


def main(words: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m cnn_research.inference.hub",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands: Any = parser.add_subparsers(dest="command", required=True)
    pushing = commands.add_parser("push", help="put an export on the hub")
    pushing.add_argument("folder", type=Path, help="that --mode=export has written")
    pushing.add_argument("repository", help="OWNER/NAME")
    pushing.add_argument("--private", action="store_true", help="where the repository is new")
    pulling = commands.add_parser("pull", help="fetch an export from the hub")
    pulling.add_argument("repository", help="OWNER/NAME")
    pulling.add_argument("folder", type=Path, help="a new one")
    options = parser.parse_args(words)
    if options.command == "push":
        print(push(options.folder, options.repository, private=options.private))
    else:
        pull(options.repository, options.folder)
        print(f"{options.folder}: whole.")


if __name__ == "__main__":
    sys.exit(run_command(main))
