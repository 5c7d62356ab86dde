"""Image files: names, decoding and resizing."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import unicodedata
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from cnn_research.core.errors import UserError

MAX_PIXELS = 50_000_000
"""Larger images are rejected: a small file can decompress to more than the memory."""

ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Extensions of the files treated as images in folders with other files."""


RARE_ENDINGS = (
    *(".jfif", ".jpe", ".apng", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl"),
    *(".tga", ".dib", ".pbm", ".pnm", ".pcx", ".dds", ".psd", ".ico"),
    *(".svg", ".eps", ".exr", ".dcm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf"),
)
"""Further extensions of image files, not all of which can be read."""
_ALL_ENDINGS = frozenset((*ENDINGS, *RARE_ENDINGS))

Fit = Literal["stretch", "crop", "pad"]
"""How an image with another aspect ratio is resized: `stretch` changes the aspect ratio, `crop`
keeps it and cuts off both ends of the longer side, `pad` keeps it and pads the shorter side with
`FILL`."""

FILL = (124, 116, 104)
"""ImageNet's mean colour, which is about zero after normalisation."""

PROFILES = 16
"""Size of the cache of colour-profile conversions; a camera's images share one profile."""

MAX_TEXT = 64 << 20
"""Bytes to which the texts and colour profile of a PNG may decompress."""

CONVERT = "convert it to JPEG or PNG"
OTHER_FORMATS = {
    rb".{4}ftyp(hei|hev|mif1|msf1)": ("HEIC, a photo format of phones", CONVERT),
    rb".{4}ftypcrx|II\x1a\0|FUJIFILMCCD|.{4}ftypjxl|\xff\x0a|.{4}JXL ": (
        "a raw photograph or JPEG XL",
        CONVERT,
    ),
    rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ": ("a video", "save its frames as images"),
    rb"(?i)\s*(<\?xml[^>]*>\s*|<!--.*?-->\s*|<!doctype svg[^>]*>\s*)*<svg": (
        "SVG, a vector drawing",
        CONVERT,
    ),
    rb"(?i)\s*(<!doctype html|<html)": ("a web page", "download the image itself"),
    rb"version https://git-lfs": ("a pointer of Git LFS", "run `git lfs pull`"),
    rb"%PDF": ("PDF", CONVERT),
    rb".{128}DICM": ("DICOM", CONVERT),
    rb"\x93NUMPY|\x89HDF|PK\x03\x04": ("an array or archive", "save each image as a file"),
    rb"\x1f\x8b": ("compressed by gzip", "unpack it"),
    rb"8BPS|gimp xcf|icns|\0\0[\1\2]\0": ("an icon or a drawing program's file", CONVERT),
    rb"\s*[{\[]": ("JSON, a server's response", "download the image itself"),
    rb"\Z": ("an empty file", "copy or download it again"),
}
"""Pattern of the first bytes of an unsupported file -> what it is, and what to do."""

BITS, LARGEST, SAMPLE_FORMAT, SIGNED = 258, 281, 339, 2
"""TIFF's tags BitsPerSample, MaxSampleValue and SampleFormat, and the latter's value for int."""


class BadImage(UserError):
    """A file that cannot be used as an image."""


def printable(name: str | os.PathLike[str]) -> str:
    """Return a file's name as text that any terminal and JSON can hold."""
    if isinstance(name, str) and name.isascii():  # fast path for most of a million names
        return " ".join(name.split())
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return " ".join(unicodedata.normalize("NFC", text).split())


def is_named_as_image(path: str | Path) -> bool:
    """Return whether a file has the extension of an image, common or rare."""
    return os.path.splitext(path)[1].lower() in _ALL_ENDINGS


def decode(
    file: Path | BinaryIO,
    image_size: tuple[int, int] | None,
    fit: Fit = "stretch",
    shown: str = "",
    opaque: bool = False,
) -> np.ndarray:
    """Decode an image to uint8 `[height, width, 3]`, resized to `image_size` if given.

    Applies the EXIF orientation, puts transparent images on white, scales 16-bit images to 8 bits,
    and converts palettes, CMYK and, with a colour profile, all colours to sRGB; an animation's
    first frame is used. Errors call the file `shown`, if given. To count colours, `opaque` replaces
    transparent pixels by opaque ones.

    Raises:
        BadImage: the file is missing, damaged or not an image, has too many pixels, is too narrow
            to pad, or has no `opaque` pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    shown = shown or printable(file if isinstance(file, Path) else "the image")
    try:
        with open_image(file) as found:
            if found.format == "EPS":
                raise BadImage(f"{shown} is PostScript, a program, which is not executed")
            if found.width * found.height > MAX_PIXELS:
                raise BadImage(
                    f"{shown} has {found.width}x{found.height} pixels, more than "
                    f"{MAX_PIXELS // 1_000_000} million: reduce its size"
                )
            white = _white(found)
            if image_size:
                # A large JPEG is decoded at a reduced size, at least twice the target.
                found.draft("RGB", (2 * max(image_size), 2 * max(image_size)))
            found.load()
            image = _to_rgb(ImageOps.exif_transpose(found), white, shown if opaque else "")
    except Image.DecompressionBombError as error:
        raise BadImage(
            f"{shown} has more than {MAX_PIXELS // 1_000_000} million pixels: reduce its size"
        ) from error
    except FileNotFoundError as error:
        raise BadImage(f"{shown} does not exist") from error
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage(f"{shown} is {_other_format(file)}") from error
    except Exception as error:  # Pillow's plugins raise a dozen kinds
        raise BadImage(f"{shown} is not an image or is damaged ({error})") from error
    if image_size is None:
        return np.asarray(image)
    height, width = image.height, image.width
    scale = min(image_size[0] / height, image_size[1] / width)
    if fit == "pad" and min(height, width) * scale < 0.5:
        raise BadImage(f"{shown} has {width}x{height} pixels, too narrow to pad: crop it")
    return resized(np.asarray(image), image_size, fit)


def open_image(file: Path | BinaryIO):  # type: ignore[no-untyped-def]
    """Open an image with Pillow, which reads only the header.

    Icons are rejected, because Pillow decodes them before their size can be checked.
    """
    from PIL import Image, PngImagePlugin

    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT
    Image.init()
    return Image.open(file, formats=[name for name in Image.ID if name not in ("ICO", "ICNS")])


def _other_format(file: Path | BinaryIO) -> str:
    """Describe a file that Pillow cannot read by its first bytes, and say what to do."""
    with open(file, "rb") if isinstance(file, Path) else contextlib.nullcontext(file) as opened:
        opened.seek(0)
        first = opened.read(1000)
    for pattern, (what, advice) in OTHER_FORMATS.items():
        if re.match(pattern, first, re.DOTALL):
            return f"{what}, which is not supported: {advice}"
    return "not an image or is damaged"


def resized(pixels: np.ndarray, image_size: tuple[int, int], fit: Fit = "stretch") -> np.ndarray:
    """Resize uint8 `[height, width, 3]` to `image_size`, with antialiasing."""
    from PIL import Image, ImageOps

    if pixels.shape[:2] == image_size:
        return pixels
    image, size = Image.fromarray(pixels), image_size[::-1]
    if fit == "crop":
        return np.asarray(ImageOps.fit(image, size, Image.Resampling.BILINEAR))
    if fit == "pad":
        return np.asarray(ImageOps.pad(image, size, Image.Resampling.BILINEAR, FILL))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def turned(pixels: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Rotate uint8 `[height, width, 3]` by 90 degrees if its orientation is not `image_size`'s."""
    (height, width), (rows, columns) = pixels.shape[:2], image_size
    across = (height - width) * (rows - columns) < 0
    return np.ascontiguousarray(np.rot90(pixels)) if across else pixels


def _white(found: Any) -> int:
    """Return the value of white in a grey image of more than 8 bits, according to its file.

    Pillow scales all formats but TIFF to 16 bits; a TIFF may declare a lower maximum. For colour
    images it uses the upper 8 of 16 bits. Raises `ValueError` for 32 bits without a declared
    maximum, and for colour images whose values are in the lower bits.
    """
    tags = getattr(found, "tag_v2", {})
    whole = tags.get(BITS, (16,))[0] - (tags.get(SAMPLE_FORMAT) == (SIGNED,))
    bits = int(tags[LARGEST][0]).bit_length() if LARGEST in tags else whole
    if found.mode.startswith("I"):
        if bits > 16:
            raise ValueError(f"{bits}-bit pixels have no defined range: save it with 16 bits")
    elif whole > 8 and bits <= whole - 4:
        raise ValueError(f"{bits}-bit colours in {whole} bits: save it with 8 bits per channel")
    return 2**bits - 1


def _to_rgb(image: Any, white: int, opaque: str) -> Any:
    """Convert a Pillow image to RGB; `white` is the value of white with more than 8 bits.

    With `opaque`, the name for errors, transparent pixels are replaced instead of put on white.
    """
    from PIL import Image

    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # `convert` would clip instead of scaling
        numbers = np.asarray(image).astype(np.int64).clip(0, white)
        image = Image.fromarray(((numbers * 255 + white // 2) // white).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range: save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode == "P":
        image = image.convert("RGB")
    if profile and (convert := _srgb_from(profile, image.mode)):
        image = convert(image)
    if image.mode == "RGBA" and opaque:
        return Image.fromarray(opaque_only(np.array(image), opaque))
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def opaque_only(pixels: np.ndarray, shown: str) -> np.ndarray:
    """Convert RGBA pixels, uint8 `[height, width, 4]`, to RGB; replace transparent pixels.

    Pixels with less than half of the largest opacity count as transparent. They are replaced evenly
    by the opaque ones, in row order, so that the shares of the opaque colours stay. Raises
    `BadImage`, which calls the image `shown`, if no pixel is opaque.
    """
    opacity = pixels[..., 3]
    seen = opacity >= max(1, opacity.max() / 2)
    colours, others = pixels[seen, :3], int(np.count_nonzero(~seen))
    if not len(colours):
        raise BadImage(f"{shown} is fully transparent, so it has no colours")
    rgb = pixels[..., :3].copy()
    rgb[~seen] = colours[np.arange(others) * len(colours) // max(1, others)]
    return rgb


@functools.lru_cache(maxsize=PROFILES)
def _srgb_from(profile: bytes, mode: str) -> Any:
    """Return a function that converts images from an ICC profile to sRGB, perceptually.

    None if the profile is invalid or does not match the mode.
    """
    from PIL import ImageCms

    try:
        icc, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        target = "RGBA" if mode == "RGBA" else "RGB"
        return ImageCms.buildTransform(icc, srgb, mode, target).apply
    except (OSError, TypeError, ValueError, ImageCms.PyCMSError):
        return None


LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


def grey(pixels: np.ndarray) -> np.ndarray:
    """Convert RGB, uint8 `[height, width, 3]`, to `[height, width, 1]` by ITU-R BT.601's luma."""
    return np.round(pixels @ np.array(LUMA)).astype(np.uint8)[..., None]


def decode_input(
    file: Path | BinaryIO,
    image_shape: tuple[int, int, int],
    fit: Fit,
    shown: str = "",
    opaque: bool = False,
) -> np.ndarray:
    """Decode an image to a network's input shape, uint8 `[height, width, channels]`: RGB or grey.

    Other arguments and errors are those of `decode`.
    """
    height, width, channels = image_shape
    image = decode(file, (height, width), fit, shown, opaque)
    return image if channels == 3 else grey(image)
