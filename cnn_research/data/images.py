"""Finding and decoding the images of a folder or an archive."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import lzma
import os
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cnn_research.core.errors import UsageError, UserError
from cnn_research.data.dataset import UNSEEN

MAX_PIXELS = 50_000_000
"""Larger images are refused: a small file can unpack into all of the memory."""

ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""The names of files that are taken for images, where any file might lie about."""

RARE_ENDINGS = (
    *(".jfif", ".jpe", ".apng", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl"),
    *(".tga", ".dib", ".pbm", ".pnm", ".pcx", ".dds", ".psd", ".ico"),
)
"""Further names of images, not all of which can be read."""

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training", "training_set"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing", "test_set"), "test"),
    "target": "target",
}
"""The names of folders, and of values in a column `split`, that mean a split."""


class BadImage(UserError):
    """A file that cannot be used as an image."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One image to read.

    Attributes:
        path: the file.
        name: what to call it, printable, relative to the source.
        split: where the source puts it; `train` where it says nothing.
        labels: per head, the class index, `MISSING` or `UNSEEN`; or the number, or NaN.
        cells: the text of its row in a table, by column, where that is to be kept.
    """

    path: Path
    name: str
    split: str
    labels: Mapping[str, float]
    cells: Mapping[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a source consists of, before any image is opened.

    Attributes:
        records: one per image, in a fixed order.
        class_names: per head of classes, the name of each class.
        notes: JSON values for the provenance.
        numbers: the heads of numbers.
    """

    records: Sequence[Record]
    class_names: Mapping[str, tuple[str, ...]]
    notes: Mapping[str, Any]
    numbers: Sequence[str] = ()


def printable(name: str | os.PathLike[str]) -> str:
    """A file's name as text that every terminal and JSON takes, whatever its bytes are."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return " ".join(unicodedata.normalize("NFC", text).split())


def decode(
    file: Path | BinaryIO, image_size: tuple[int, int] | None, shown: str = ""
) -> np.ndarray:
    """The image in a file as uint8 `[height, width, 3]`, stretched to `image_size`.

    None leaves it at its own size.

    Rotated as EXIF says, transparency put on white, 16 bits reduced to 8, CMYK and palettes
    turned into RGB; of an animation the first frame.

    Args:
        file: its path, or its opened content.
        image_size: height and width.
        shown: what errors call it, if not by its path.

    Raises:
        BadImage: it is not an image, is damaged, has too many pixels, or is not there.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    shown = shown or printable(file if isinstance(file, Path) else "the image")
    try:
        with open_image(file) as found:
            if found.format == "EPS":
                raise BadImage(f"{shown} is PostScript, a program, which is not run")
            if found.width * found.height > MAX_PIXELS:
                raise BadImage(
                    f"{shown} has {found.width}x{found.height} pixels, more than "
                    f"{MAX_PIXELS // 1_000_000} million: make it smaller"
                )
            if image_size:
                # A large JPEG is decoded at the nearest size above twice the wanted one.
                found.draft("RGB", (2 * max(image_size), 2 * max(image_size)))
            found.load()
            image = _to_rgb(ImageOps.exif_transpose(found))
    except Image.DecompressionBombError as error:
        raise BadImage(
            f"{shown} has more than {MAX_PIXELS // 1_000_000} million pixels: make it smaller"
        ) from error
    except FileNotFoundError as error:
        raise BadImage(f"{shown} does not exist") from error
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage(f"{shown} is not an image or is damaged") from error
    except Exception as error:  # Pillow's plugins raise a dozen different ones
        raise BadImage(f"{shown} is not an image or is damaged ({error})") from error
    return resized(np.asarray(image), image_size) if image_size else np.asarray(image)


def open_image(file: Path | BinaryIO):  # type: ignore[no-untyped-def]
    """Pillow's image of a file, of which only the header has been read.

    Icons are not opened: their images are decoded at once, before their size can be looked at.
    """
    from PIL import Image

    Image.init()
    return Image.open(file, formats=[name for name in Image.ID if name not in ("ICO", "ICNS")])


def resized(pixels: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """uint8 `[height, width, 3]` stretched to `image_size`, averaging where it gets smaller."""
    from PIL import Image

    if pixels.shape[:2] == image_size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(image_size[::-1], Image.Resampling.BILINEAR))


def turned(pixels: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """uint8 `[height, width, 3]`, by a quarter if it stands and `image_size` lies, or vice
    versa."""
    (height, width), (rows, columns) = pixels.shape[:2], image_size
    across = (height - width) * (rows - columns) < 0
    return np.ascontiguousarray(np.rot90(pixels)) if across else pixels


def _to_rgb(image):  # type: ignore[no-untyped-def]
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits: `convert` would clip instead of scaling
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray((grey // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def grey(pixels: np.ndarray) -> np.ndarray:
    """RGB uint8 `[height, width, 3]` as `[height, width, 1]`, by the luma of ITU-R BT.601."""
    return np.round(pixels @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[..., None]


def encode(pixels: np.ndarray) -> bytes:
    """uint8 `[height, width, 3]` as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The folder or table `path`; an archive is unpacked into a folder that is gone afterwards."""
    if path.is_dir() or path.suffix.lower() == ".csv":
        yield path
        return
    if path.suffix.lower() in (".tsv", ".txt"):
        raise UsageError(
            f"{printable(path)} is no archive: if it is a table, rename it to .csv (commas, "
            "semicolons and tabs are understood)"
        )
    with tempfile.TemporaryDirectory(prefix="cnn_research_") as folder:
        try:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(folder)
            else:
                with tarfile.open(path) as archive:
                    archive.extractall(folder, filter="data")
        except (
            *(tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error),
            *(EOFError, OSError, ValueError, RuntimeError),  # the last: encrypted, or packed oddly
        ) as error:
            raise UserError(
                f"{printable(path)} is neither a folder nor a whole .tar, .tar.gz, .tar.xz or "
                f".zip archive ({error})"
            ) from error
        yield Path(folder)


def files_below(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """Every file below `folder` that is not hidden, sorted by path, with its status."""
    found = []
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.name.startswith((".", "__MACOSX")) or entry.name == "Thumbs.db":
                    continue
                if entry.is_dir():
                    pending.append(Path(entry.path))
                else:  # a link to nothing is kept, to be named when it is read
                    exists = os.path.exists(entry.path)
                    found.append((Path(entry.path), entry.stat(follow_symlinks=exists)))
    return sorted(found, key=lambda item: item[0].parts)


def plan_folder(root: Path, shown: str, class_of: Callable[[str], str] = printable) -> Plan:
    """The records of `<split>/<class>/*` or `<class>/*` in `root`; errors name it `shown`.

    A single folder around everything is looked through. Classes that only the split `target` has
    are `UNSEEN`. `class_of` makes a class of a folder's name. Where files are named as images, a
    folder without any, as of annotations, is no class.

    Raises:
        UsageError: a table instead of a folder.
        UserError: no folders of images, one class only, or folders of splits and others together,
            or of splits that are not named as such.
    """
    if root.is_file():
        raise UsageError(f"{shown} is a table, not a folder: use --experiment=image_table")
    paths = [path.relative_to(root) for path, _ in files_below(root)]
    while (wrapper := _wrapper(paths)) is not None:
        root = root / wrapper
        paths = [path.relative_to(wrapper) for path in paths if path.parts[0] == wrapper]
    tops = {path.parts[0] for path in paths if len(path.parts) > 1}
    splits = {top: SPLIT_FOLDERS[top.lower()] for top in tops if top.lower() in SPLIT_FOLDERS}
    # A class may be called 'train', beside 'bus' and 'tram': alone it is no split.
    has_splits = "train" in splits.values() and (len(set(splits.values())) > 1 or len(tops) == 1)
    if has_splits and tops - splits.keys():
        raise UserError(
            f"{shown} has split folders ({', '.join(sorted(splits))}) and others beside them "
            f"({printable(sorted(tops - splits.keys())[0])}): move the others elsewhere"
        )
    depth = 1 if has_splits else 0
    kept = [path for path in paths if len(path.parts) > depth + 1]
    if not kept:
        raise UserError(
            f"{shown} has no folders of images: it needs one per class, as <class>/* or "
            "<split>/<class>/*"
        )
    found = [
        (path, splits[path.parts[0]] if has_splits else "train", class_of(path.parts[depth]))
        for path in kept
    ]
    all_names = {name for _, _, name in found}
    with_images = {name for path, _, name in found if is_named_as_image(path)} or all_names
    found = [item for item in found if item[2] in with_images]
    if not has_splits:
        files = [path for path, _, _ in found]
        _check_for_unknown_splits([*filter(is_named_as_image, files)] or files, shown)
    classes = class_names((name for _, split, name in found if split != "target"), shown)
    index = {name: at for at, name in enumerate(classes)}
    return Plan(
        records=[
            Record(root / path, printable(path), split, {"label": index.get(name, UNSEEN)})
            for path, split, name in found
        ],
        class_names={"label": classes},
        notes={
            "files_outside_class_folders": len(paths) - len(kept),
            "folders_without_images": len(all_names - with_images),
        },
    )


def is_named_as_image(path: Path) -> bool:
    """Whether a file's name ends as an image's, common or rare."""
    return path.suffix.lower() in (*ENDINGS, *RARE_ENDINGS)


def _check_for_unknown_splits(paths: Sequence[Path], shown: str) -> None:
    """An error where the folders at the top all have the same folders in them, two or more."""
    below: dict[str, set[str]] = {}
    for path in paths:
        if len(path.parts) < 3:
            return
        below.setdefault(path.parts[0], set()).add(path.parts[1])
    first, *others = below.values()
    if others and len(first) > 1 and all(inner == first for inner in others):
        raise UserError(
            f"{shown} has the same folders in each of {printable(', '.join(sorted(below)))}, which "
            "look like splits with names that are not known: rename them to train, validation and "
            "test; or, if they are classes, move their images out of the inner folders"
        )


def plan_photos(root: Path, shown: str) -> Plan:
    """The records of every image below `root`, by the endings of names.

    Raises:
        UserError: there is none; names `shown`.
    """
    paths = [path for path, _ in files_below(root)]
    kept = [path for path in paths if path.suffix.lower() in ENDINGS]
    if not kept:
        raise UserError(f"{shown} has no images in it")
    return Plan(
        records=[Record(path, printable(path.relative_to(root)), "train", {}) for path in kept],
        class_names={},
        notes={"other_files": len(paths) - len(kept)},
    )


def class_names(names: Iterable[str], shown: str) -> tuple[str, ...]:
    """The different ones of `names`, sorted; an error that names `shown` if there is only one."""
    classes = tuple(sorted(set(names)))
    if len(classes) == 1:
        raise UserError(
            f"{shown} has one class only, '{classes[0]}': it needs a folder for each class"
        )
    return classes


def _wrapper(paths: Sequence[Path]) -> str | None:
    """The one folder that holds all the others, if there is one and it is no split."""
    tops = {path.parts[0] for path in paths if len(path.parts) > 1}
    nested = any(len(path.parts) > 2 for path in paths)
    top = next(iter(tops)) if len(tops) == 1 else "train"
    return top if nested and top.lower() not in SPLIT_FOLDERS else None
