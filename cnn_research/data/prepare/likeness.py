"""Near duplicates: images that are one picture, saved again, resized, mirrored or hardly changed.

All are compared at a small size, as vectors without their contrast. A tree over the vectors'
principal axes finds the nearest few of each image; no two are further apart along these axes than
they are, so that of all within the radius none is missed but by the limit on the few. Those are
then compared at a larger size, block by block: another print on the same shirt is one block that
differs. So the work grows with the number of images, not with that of their pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from cnn_research.core.files import release
from cnn_research.core.preemption import raise_if_interrupted
from cnn_research.core.progress import Tally

SEARCHED, MEASURED = 16, 32
"""Sides in pixels at which images are searched for others, and compared with what was found."""
RADIUS = 0.15
"""Distance of vectors up to which images are compared. Photographs saved again as JPEG of quality
20 have 0.07 at most."""
BLOCK = 4
"""Side in pixels of the blocks that are compared."""
UNLIKE = 0.24
"""Difference of one block from which on two images are no near duplicates. JPEG of quality 20 makes
0.13 at most, and of 40 at half of the size, 0.2; a product in another colour is at 0.25."""
TINT = 5.8
"""Difference of the mean colour of one block, of 255 and brightness aside, that counts like
`UNLIKE`: products in black and in dark blue or brown are at 6 to 9, and JPEG of quality 40 at half
of the size makes 5 at most."""
AXES = 16
"""Principal axes of the search."""
NEAREST = 16
"""An image is compared with so many others at most, and so is its mirror image."""
FEWEST_LEVELS, MOST_LEVELS = 8.0, 50.0
"""Standard deviations of pixels, of 255, that count where an image has less, whose noise would be
magnified, or more: what saving again changes does not grow with the contrast, and what makes two
products of one shape different, such as brown and black, does not either."""
BRIGHTNESS = 100.0
"""Difference in mean brightness, of 255, that counts like one standard deviation."""
SAMPLE, CHUNK = 2000, 1024
"""Images from which the axes are taken, and those that are in memory at once."""


@dataclasses.dataclass(frozen=True, eq=False)
class Likenesses:
    """Pairs of near duplicates, the most similar ones first.

    Attributes:
        pairs: indices of images, int64 `[pairs, 2]`, the smaller one first; each pair once.
        differences: float32 `[pairs]`, of the block that differs most: 0 for equal pixels, and
            below `UNLIKE`.
        mirrored: bool `[pairs]`, whether one is like the mirror image of the other.
    """

    pairs: np.ndarray
    differences: np.ndarray
    mirrored: np.ndarray


def near_duplicates(images: np.ndarray, chosen: np.ndarray) -> Likenesses:
    """The near duplicates among the images at the indices `chosen`, ascending int64 `[n]`.

    Images are uint8 `[examples, height, width, channels]`. Leave exact copies out of `chosen`: an
    image with many of them would be compared with nothing else.
    """
    found = [Likenesses(np.zeros((0, 2), np.int64), np.zeros(0, np.float32), np.zeros(0, bool))]
    if len(chosen) > 1:
        for turned, candidates in zip((False, True), _candidates(images, chosen), strict=True):
            differences = _differences(images, candidates, mirrored=turned)
            alike = differences < UNLIKE
            pairs = candidates[alike]
            found.append(Likenesses(pairs, differences[alike], np.full(len(pairs), turned)))
    pairs = np.concatenate([each.pairs for each in found])
    differences = np.concatenate([each.differences for each in found])
    mirrored = np.concatenate([each.mirrored for each in found])
    order = np.lexsort((pairs[:, 1], pairs[:, 0], mirrored, differences))
    # Symmetric images find each other and each other's mirror image.
    _, first = np.unique(pairs[order], axis=0, return_index=True)
    kept = order[np.sort(first)]
    return Likenesses(pairs[kept], differences[kept], mirrored[kept])


def _candidates(images: np.ndarray, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of what may be alike, indices int64 `[pairs, 2]`, ascending: of the images as they are,
    then of images and mirror images."""
    from scipy.spatial import cKDTree

    count = len(chosen)
    sample = _vectors(_small(images, chosen[:: max(1, count // SAMPLE)], SEARCHED))
    axes = np.linalg.svd(sample - sample.mean(axis=0), full_matrices=False)[2][:AXES].T
    views = np.empty((2, count, axes.shape[1]), np.float32)
    for start in range(0, count, CHUNK):
        raise_if_interrupted()
        small = _small(images, chosen[start : start + CHUNK], SEARCHED)
        for view, turned in zip(views, (small, small[:, :, ::-1]), strict=True):
            view[start : start + CHUNK] = _vectors(turned) @ axes
    tree = cKDTree(views[0])
    for view in views:
        found = []
        for start in range(0, count, CHUNK):
            raise_if_interrupted()
            part = view[start : start + CHUNK]
            # One more than the nearest, since an image finds itself.
            _, nearest = tree.query(part, NEAREST + 1, distance_upper_bound=RADIUS, workers=-1)
            places = np.broadcast_to(np.arange(start, start + len(part))[:, None], nearest.shape)
            others = (nearest < count) & (nearest != places)
            ends = places[others], nearest[others]
            found.append(np.minimum(*ends) * count + np.maximum(*ends))
        # Mostly, both of a pair find each other.
        yield chosen[np.stack(np.divmod(np.unique(np.concatenate(found)), count), axis=1)]


def _differences(images: np.ndarray, pairs: np.ndarray, *, mirrored: bool) -> np.ndarray:
    """Difference of each pair of images, float32 `[pairs]`; of mirror images of the first."""
    differences = np.zeros(len(pairs), np.float32)
    turned = slice(None, None, -1 if mirrored else 1)
    with Tally("comparing images", len(pairs), " pairs") as tally:
        for start in range(0, len(pairs), CHUNK):
            raise_if_interrupted()
            # An image is in many pairs, one after the other.
            chosen, places = np.unique(pairs[start : start + CHUNK], return_inverse=True)
            one, other = places.reshape(-1, 2).T
            small = _small(images, chosen, MEASURED)
            (pixels, brightness), tints = _scaled(small), _tints(small)
            apart = np.mean((pixels[one][:, :, turned] - pixels[other]) ** 2, axis=-1)
            worst = (
                _block_means(apart).max(axis=(1, 2)) + (brightness[one] - brightness[other]) ** 2
            )
            tint = np.mean(_block_means(tints[one][:, :, turned] - tints[other]) ** 2, axis=-1)
            differences[start : start + CHUNK] = np.maximum(
                np.sqrt(worst), np.sqrt(tint.max(axis=(1, 2))) / TINT * UNLIKE
            )
            tally.advance(len(one))
    return differences


def _block_means(values: np.ndarray) -> np.ndarray:
    """Means over blocks, float32 `[n, rows, columns, ...]`, of values `[n, height, width, ...]`."""
    for axis in (1, 2):
        starts = np.arange(0, values.shape[axis], BLOCK)
        sizes = np.diff([*starts, values.shape[axis]]).astype(np.float32)
        shape = [len(starts) if each == axis else 1 for each in range(values.ndim)]
        values = np.add.reduceat(values, starts, axis=axis) / sizes.reshape(shape)
    return values


def _tints(small: np.ndarray) -> np.ndarray:
    """Images, uint8 `[n, height, width, channels]`, without their brightness: float32."""
    pixels = small.astype(np.float32)
    return pixels - pixels.mean(axis=-1, keepdims=True)


def _small(images: np.ndarray, indices: np.ndarray, side: int) -> np.ndarray:
    """The images at `indices`, RGB or grey, averaged to at most `side` by `side` pixels; uint8
    `[n, height, width, channels]`."""
    from PIL import Image

    height, width, channels = images.shape[1:]
    size = min(side, width), min(side, height)
    if size == (width, height):
        return images[indices]
    colours = 3 if channels == 3 else 1
    small = np.empty((len(indices), size[1], size[0], colours), np.uint8)
    for place, index in enumerate(indices):
        image = Image.fromarray(images[index] if colours == 3 else images[index, ..., 0])
        resized = np.asarray(image.resize(size, Image.Resampling.BOX))
        small[place] = resized.reshape(small.shape[1:])
    release(images)
    return small


def _vectors(small: np.ndarray) -> np.ndarray:
    """Images, uint8 `[n, height, width, channels]`, as vectors float32 `[n, numbers]`, so that
    their distance is the difference of the images, were they one block."""
    pixels, brightness = _scaled(small)
    flat = pixels.reshape(len(small), -1)
    return np.concatenate([flat / np.sqrt(flat.shape[1]), brightness[:, None]], axis=1)


def _scaled(small: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pixels' distance from an image's mean, in standard deviations, float32 of their shape;
    and that mean, float32 `[n]`."""
    pixels = small.astype(np.float32)
    every = (1, 2, 3)
    mean = pixels.mean(axis=every, keepdims=True)
    pixels -= mean
    deviation = np.sqrt(np.mean(pixels**2, axis=every, keepdims=True))
    return pixels / np.clip(deviation, FEWEST_LEVELS, MOST_LEVELS), mean.ravel() / BRIGHTNESS
