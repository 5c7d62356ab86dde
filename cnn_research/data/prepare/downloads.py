"""Download or copy official files of data sets, which are identified by checksums."""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from cnn_research.core.errors import UserError
from cnn_research.core.files import sha256_of
from cnn_research.core.progress import Tally

PART = 1 << 20
"""Bytes that are read at once."""


def fetch(address: str, folder: Path, official: Mapping[str, str], title: str, advice: str) -> None:
    """Download one of the `official` files (names and their SHA-256) into the folder.

    The address is a web or `file:` URL. Raises `UserError` if the download fails, with `advice`, or
    if it is another file; errors call the data set `title`.
    """
    file = folder / "download"
    try:
        with urllib.request.urlopen(address, timeout=20) as answer, open(file, "wb") as output:
            megabytes = int(answer.headers.get("Content-Length") or 0) / 1e6
            with Tally(f"fetching {title}", megabytes or None, " MB") as tally:
                while part := answer.read(PART):
                    output.write(part)
                    tally.advance(len(part) / 1e6)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"cannot download {title} from {address} ({error}): {advice}") from error
    digest = sha256_of(file)
    names = [name for name, known in official.items() if known == digest]
    if not names:
        raise not_official(address, title)
    file.rename(folder / names[0])


def not_official(where: str, title: str) -> UserError:
    """Make the error for a file whose checksum is not the official one."""
    return UserError(
        f"{where} is not an official file of {title} (its SHA-256 differs): it is damaged, "
        "incomplete or another version; download it again"
    )
