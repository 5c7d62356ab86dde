"""Official files of data sets: downloaded or copied, and known by their checksums."""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from cnn_research.core.errors import UserError
from cnn_research.core.preemption import raise_if_interrupted

CHUNK = 1 << 20


def fetch(address: str, folder: Path, official: Mapping[str, str], refusal: str) -> None:
    """Puts the file at an address, `file:` or of the web, into `folder`, whole or not at all.

    Args:
        address: of the file.
        folder: is made if need be.
        official: the SHA-256 of each file that it may be, by the name that it is given.
        refusal: what the user is told of any other file.

    Raises:
        UserError: it is another file.
        OSError, http.client.HTTPException, ValueError: it cannot be had.
    """
    partial, digest = folder / ".partial", hashlib.sha256()
    with urllib.request.urlopen(address, timeout=20) as answer:
        folder.mkdir(parents=True, exist_ok=True)
        size = int(answer.headers.get("Content-Length") or 0) or None
        bar = tqdm(total=size, desc="fetching", unit="B", unit_scale=True, disable=None)
        try:
            with bar, open(partial, "wb") as file:
                while chunk := answer.read(CHUNK):
                    raise_if_interrupted()
                    digest.update(chunk)
                    file.write(chunk)
                    bar.update(len(chunk))
            names = [name for name, known in official.items() if known == digest.hexdigest()]
            if not names:
                raise UserError(refusal)
            partial.rename(folder / names[0])
        finally:
            partial.unlink(missing_ok=True)
