"""Official files of data sets: downloaded or copied, and known by their checksums."""

from __future__ import annotations

import http.client
import shutil
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from cnn_research.core.errors import UserError
from cnn_research.core.files import sha256_of


def fetch(address: str, folder: Path, official: Mapping[str, str], title: str, advice: str) -> None:
    """Download one of the `official` files (names and their SHA-256) into the folder.

    The address is of the web or `file:`. Raises `UserError` if the download fails, with the name of
    the data set, `title`, and `advice`; or if it is another file.
    """
    file = folder / "download"
    try:
        with urllib.request.urlopen(address, timeout=20) as answer, open(file, "wb") as output:
            size = int(answer.headers.get("Content-Length") or 0) or None
            with tqdm.wrapattr(
                answer, "read", size, desc=f"fetching {title}", disable=None
            ) as stream:
                shutil.copyfileobj(stream, output)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(
            f"{title} could not be downloaded from {address} ({error}): {advice}"
        ) from error
    digest = sha256_of(file)
    names = [name for name, known in official.items() if known == digest]
    if not names:
        raise not_official(address, title)
    file.rename(folder / names[0])


def not_official(where: str, title: str) -> UserError:
    """The error for a file whose checksum is not the official one."""
    return UserError(
        f"{where} is not an official file of {title} (its SHA-256 differs): it is damaged, "
        "incomplete or another version; fetch it again"
    )
