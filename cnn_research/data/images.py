"""Images in files: their names, decoding and resizing."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cnn_research.core.errors import UserError

MAX_PIXELS = 50_000_000
"""Larger images are refused: a small file can unpack into all of the memory."""

ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""The names of files that are taken for images, where any file might lie about."""


RARE_ENDINGS = (
    *(".jfif", ".jpe", ".apng", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl"),
    *(".tga", ".dib", ".pbm", ".pnm", ".pcx", ".dds", ".psd", ".ico"),
)
"""Further names of images, not all of which can be read."""
_ALL_ENDINGS = frozenset((*ENDINGS, *RARE_ENDINGS))


class BadImage(UserError):
    """A file that cannot be used as an image."""


def printable(name: str | os.PathLike[str]) -> str:
    """A file's name as text that every terminal and JSON takes, whatever its bytes are."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return " ".join(unicodedata.normalize("NFC", text).split())


def is_named_as_image(path: str | Path) -> bool:
    """Return whether a file's name ends as an image's, common or rare."""
    return os.path.splitext(path)[1].lower() in _ALL_ENDINGS


def decode(
    file: Path | BinaryIO, image_size: tuple[int, int] | None, shown: str = ""
) -> np.ndarray:
    """Decode an image to uint8 `[height, width, 3]`, stretched to `image_size` unless that is None.

    Rotated as EXIF says, transparency put on white, 16 bits reduced to 8, CMYK and palettes turned
    into RGB; of an animation the first frame. Errors name the file `shown`, if given. Raises
    `BadImage` if it is not an image, is damaged, has too many pixels, or is not there.
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
    """Open an image with Pillow, reading the header only.

    Icons are refused: their images are decoded at once, before their size can be checked.
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
    """Turn uint8 `[height, width, 3]` by a quarter if its orientation is not that of
    `image_size`."""
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


LUMA = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in grey (ITU-R BT.601)."""


def grey(pixels: np.ndarray) -> np.ndarray:
    """RGB uint8 `[height, width, 3]` as `[height, width, 1]`, by the luma of ITU-R BT.601."""
    return np.round(pixels @ np.array(LUMA)).astype(np.uint8)[..., None]


def decode_input(
    file: Path | BinaryIO, image_shape: tuple[int, int, int], shown: str = ""
) -> np.ndarray:
    """Decode an image as a network takes it, uint8 `[height, width, channels]`: RGB or grey.

    The other arguments and the errors are those of `decode`.
    """
    height, width, channels = image_shape
    image = decode(file, (height, width), shown)
    return image if channels == 3 else grey(image)
