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
    """Download a file (`file:` or web address) into `folder`, whole or not at all.

    `official` maps the accepted file names to their SHA-256.

    Raises:
        UserError: it is another file; the message is `refusal`.
        OSError, http.client.HTTPException, ValueError: the download fails.
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
