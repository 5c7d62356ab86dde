"""Files of images: depths, colour profiles, and how other shapes come to a size."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from cnn_research.data.images import FILL, BadImage, decode, resized

# Depths ------------------------------------------------------------------------------------------

RAMP = np.arange(256).reshape(16, 16)
GREYS = np.stack([RAMP] * 3, -1)
BITS, COMPRESSION, PHOTOMETRIC, OFFSET, ROWS, SIZES, LARGEST = 258, 259, 262, 273, 278, 279, 281


def grey_tiff(numbers: bytes, bits: int, *more: tuple[int, int], height=16, width=16) -> io.BytesIO:
    """A little-endian TIFF of one channel, written by hand: Pillow writes no 12 bits."""
    tags = {256: width, 257: height, BITS: bits, COMPRESSION: 1, PHOTOMETRIC: 1, 277: 1}
    tags |= {ROWS: height, SIZES: len(numbers), **dict(more)}
    tags[OFFSET] = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    folder = struct.pack("<H", len(tags)) + entries + bytes(4)
    return io.BytesIO(b"II*\0" + struct.pack("<I", 8) + folder + numbers)


def scaled(bits: int) -> np.ndarray:
    return np.round(RAMP / 255 * (2**bits - 1)).astype("<u2")


def packed_12(numbers: np.ndarray) -> bytes:
    first, second = numbers.reshape(-1, 2).astype(int).T
    parts = first >> 4, (first & 15) << 4 | second >> 8, second & 255
    return np.stack(parts, -1).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    "file",
    [
        grey_tiff(scaled(16).tobytes(), 16),
        grey_tiff(packed_12(scaled(12)), 12),
        grey_tiff(scaled(12).tobytes(), 16, (LARGEST, 4095)),
        grey_tiff(scaled(12).tobytes(), 16, (LARGEST, 4000)),
        grey_tiff(scaled(15).tobytes(), 16, (339, 2)),
        io.BytesIO(b"P5 16 16 4095\n" + scaled(12).astype(">u2").tobytes()),
    ],
    ids=["16", "12 packed", "12 in 16", "largest of 12 in 16", "signed", "PGM of 12"],
)
def test_depths_are_scaled_by_what_the_file_says(file):
    np.testing.assert_allclose(decode(file, None).astype(int), GREYS, atol=1)


def test_numbers_between_levels_are_rounded(tmp_path):
    Image.fromarray(np.array([[0, 128, 129, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert decode(tmp_path / "deep.png", None)[0, :, 0].tolist() == [0, 0, 1, 255]


def test_depths_without_a_range_are_refused():
    whole = grey_tiff(RAMP.astype("<u4").tobytes(), 32)
    with pytest.raises(BadImage, match="32-bit pixels have no defined range"):
        decode(whole, None)
    file = io.BytesIO()
    Image.fromarray(GREYS.astype(np.uint8)).save(file, "TIFF", tiffinfo={LARGEST: 4095})
    assert (decode(file, None) == GREYS).all(), "of 8 bits nothing is scaled"
    content = file.getvalue().replace(struct.pack("<HHH", 8, 8, 8), struct.pack("<HHH", 16, 16, 16))
    with pytest.raises(BadImage, match="12-bit colours in 16 bits: save it with 8"):
        decode(io.BytesIO(content), None)


# Colours -----------------------------------------------------------------------------------------

SRGB = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.7141]]
)
ADOBE = np.array(
    [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
)
P3 = np.array(
    [[0.51512, 0.29198, 0.1571], [0.2412, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
)
GAMMA = 2.19921875


def fixed(*numbers: float) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(65536 * number) for number in numbers))


def icc(colours: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2."""
    kind = b"mntr" if colours == b"RGB " else b"prtr"
    header = struct.pack(
        ">4xI4s4s4s12s4s28x", 0x02400000, kind, colours, connection, bytes(12), b"acsp"
    )
    table, content, start = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    header += fixed(0.9642, 1, 0.8249) + bytes(48)
    size = 4 + len(header) + 4 + len(table) + len(content)
    return struct.pack(">I", size) + header + struct.pack(">I", len(tags)) + table + content


def rgb_profile(matrix: np.ndarray) -> bytes:
    """Of three primaries (columns, XYZ under D50) and a gamma."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * GAMMA))
    columns = zip((b"rXYZ", b"gXYZ", b"bXYZ"), matrix.T, strict=True)
    tags = {name: b"XYZ " + bytes(4) + fixed(*column) for name, column in columns}
    return icc(b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def cmyk_profile() -> bytes:
    """Paper is white, black is black, and full cyan a middle grey of L* 50, whatever is with it."""
    corners = np.full((2, 2, 2, 2, 3), 128, np.uint8)
    corners[0, :, :, 0, 0], corners[:, :, :, 1, 0] = 255, 0
    steps = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    return icc(b"CMYK", b"Lab ", {b"A2B0": table + 4 * steps + corners.tobytes() + 3 * steps})


def in_srgb(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """By NumPy alone."""
    linear = (pixels / 255) ** GAMMA @ (np.linalg.inv(SRGB) @ matrix).T
    linear = linear.clip(0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return 255 * curved


COLOURS = np.random.default_rng(0).integers(60, 200, (16, 16, 3), np.uint8)


@pytest.mark.parametrize("matrix", [ADOBE, P3], ids=["Adobe RGB", "Display P3"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_colours_become_those_of_srgb(matrix, kind):
    file = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(COLOURS).save(file, kind, icc_profile=rgb_profile(matrix), **options)
    found = decode(file, None).astype(int)
    np.testing.assert_allclose(found, in_srgb(COLOURS, matrix), atol=2)
    assert np.abs(found - COLOURS).max() > 10


def test_cmyk_is_read_by_its_profile():
    file = io.BytesIO()
    inks = Image.new("CMYK", (16, 8))
    inks.paste((255, 0, 200, 0), (8, 0, 16, 8))
    inks.save(file, "TIFF", icc_profile=cmyk_profile())
    found = decode(file, None).astype(int)
    assert found[:, :8].min() >= 254 and np.abs(found[:, 8:] - 119).max() <= 3


def test_transparent_and_palette_images_are_converted_before_they_are_put_on_white():
    shown = Image.fromarray(COLOURS[:1, :2]).quantize(2)
    colours = np.asarray(shown.convert("RGB"))
    half = Image.fromarray(np.dstack([colours, np.array([[[0], [255]]], np.uint8)]))
    for image, first in ((shown, in_srgb(colours[0, 0], P3)), (half, [255] * 3)):
        file = io.BytesIO()
        image.save(file, "PNG", icc_profile=rgb_profile(P3))
        expected = [[first, in_srgb(colours[0, 1], P3)]]
        np.testing.assert_allclose(decode(file, None).astype(int), expected, atol=2)


@pytest.mark.parametrize(
    "profile",
    [
        b"none",
        rgb_profile(P3)[:200],
        cmyk_profile(),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ],
    ids=["no profile", "cut off", "of CMYK", "sRGB"],
)
def test_profiles_that_say_nothing_change_nothing(profile):
    file = io.BytesIO()
    Image.fromarray(COLOURS).save(file, "PNG", icc_profile=profile)
    np.testing.assert_array_equal(decode(file, None), COLOURS)


# Transparency ------------------------------------------------------------------------------------


def logo(size=(40, 30), **colours: tuple[int, ...]) -> Image.Image:
    """Bars of RGBA colours on a transparent ground."""
    image = Image.new("RGBA", size)
    for number, colour in enumerate(colours.values()):
        image.paste(colour, (8 + 6 * number, 10, 14 + 6 * number, 20))
    return image


def shares(pixels: np.ndarray) -> dict[tuple[int, ...], float]:
    found, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(c.tolist()): n / counts.sum() for c, n in zip(found, counts, strict=True)}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_have_no_colour_of_their_own(kind):
    red, ink, faint = (220, 30, 60), (10, 20, 90), (0, 200, 0)
    image = logo(a=(*red, 255), b=(*red, 200), c=(*ink, 255), d=(*faint, 100))
    file = io.BytesIO()
    image.save(file, kind, lossless=True, exact=True)
    found = shares(decode(file, None, opaque=True))
    assert found == pytest.approx({red: 2 / 3, ink: 1 / 3}, abs=0.01)
    assert shares(decode(file, None))[255, 255, 255] > 0.7
    assert decode(file, (9, 9), opaque=True).shape == (9, 9, 3)


def test_what_is_faint_all_over_has_its_colours_and_nothing_has_none():
    for mode, there, none in (("RGBA", (1, 2, 3, 40), (1, 2, 3, 0)), ("LA", (7, 40), (7, 0))):
        file, empty = io.BytesIO(), io.BytesIO()
        Image.new(mode, (8, 8), there).save(file, "PNG")
        assert list(shares(decode(file, None, opaque=True))) == [(*there[:-1] * 3,)[:3]]
        Image.new(mode, (8, 8), none).save(empty, "PNG")
        with pytest.raises(BadImage, match=r"^a\.png is fully transparent, so it has no colours$"):
            decode(empty, None, shown="a.png", opaque=True)
        assert decode(empty, None).min() == 255


def test_a_colour_that_stands_for_transparency_does_not_count():
    image, file = Image.new("P", (8, 8), 1), io.BytesIO()
    image.putpalette([0, 0, 0, 250, 10, 10])
    image.paste(0, (0, 0, 8, 5))
    image.save(file, "GIF", transparency=0)
    assert shares(decode(file, None, opaque=True)) == {(250, 10, 10): 1}


# Shapes ------------------------------------------------------------------------------------------


def test_crop_takes_the_middle_and_pad_keeps_all():
    tall = np.zeros((90, 30, 3), np.uint8)
    tall[30:60] = 200
    np.testing.assert_array_equal(resized(tall, (30, 30), "crop"), np.full((30, 30, 3), 200))
    padded = resized(tall, (30, 30), "pad")
    assert (padded[:, :10] == FILL).all() and (padded[:, 20:] == FILL).all()
    np.testing.assert_array_equal(padded[:, 10:20], resized(tall, (30, 10)))
    wide = tall.transpose(1, 0, 2)
    for fit in ("crop", "pad"):
        np.testing.assert_array_equal(
            resized(wide, (30, 30), fit).swapaxes(0, 1), resized(tall, (30, 30), fit)
        )
        np.testing.assert_array_equal(resized(tall, (45, 15), fit), resized(tall, (45, 15)))


def test_a_large_photograph_is_fitted_from_a_smaller_decoding(tmp_path):
    rows, columns = np.indices((900, 400))
    waves = 128 + 60 * np.sin(rows / 60) + 60 * np.cos(columns / 50)
    Image.fromarray(waves.astype(np.uint8)).save(tmp_path / "tall.jpg", quality=95)
    whole = decode(tmp_path / "tall.jpg", None)
    for fit in ("stretch", "crop", "pad"):
        found = decode(tmp_path / "tall.jpg", (40, 40), fit).astype(int)
        assert np.abs(found - resized(whole, (40, 40), fit)).mean() < 2


def test_too_narrow_to_be_padded(tmp_path):
    Image.new("RGB", (500, 3)).save(tmp_path / "line.png")
    assert decode(tmp_path / "line.png", (64, 64), "crop").shape == (64, 64, 3)
    with pytest.raises(BadImage, match=r"line.png has 500x3 pixels, too narrow to pad"):
        decode(tmp_path / "line.png", (64, 64), "pad")
