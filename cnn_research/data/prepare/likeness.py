"""Near duplicates: the same picture re-encoded, resized, mirrored or slightly changed.

First, images are compared at a small size, as contrast-normalised vectors. A tree over the vectors'
principal components finds the nearest few neighbours of each; projections only shorten distances,
so no neighbour within the radius is missed unless there are too many. These candidates are then
compared at a larger size, block by block: another print on the same shirt is a block that differs.
The cost grows with the number of images, not of pairs.

That test is too strict for another crop or grading of a photograph: a shift by a pixel changes
every textured block. So a pair is also found if its images are much closer to each other than to
their usual neighbours, as long as both are textured throughout and their colours agree. This leaves
out objects on an empty background, where a shape in another colour is that close, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from cnn_research.core.files import release
from cnn_research.core.preemption import raise_if_interrupted
from cnn_research.core.progress import Tally

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

SEARCHED, MEASURED = 16, 32
"""Sides, in pixels, of the images for the search and for the comparison of candidates."""
RADIUS = 0.15
"""Maximum distance between the vectors of candidates. Photographs re-encoded as JPEG of quality 20
are at most 0.07 apart."""
REACH, RELATIVE = 0.45, 0.75
"""Distance of vectors, and its ratio to the distance of usual neighbours, below which textured
images are near duplicates. In CIFAR-10, 100 of 100 pairs at 0.62 to 0.74 show one picture."""
USUAL, SCALED = 7, 20_000
"""Rank of the usual neighbour, and the size of the sample of images in which it is searched for, so
that its distance does not shrink as a set grows."""
SPARSE = 0.45
"""Distance of usual neighbours from which the ratio is used. It is lower for many products, whose
poses are nearly the same."""
TEXTURED, LEVELS = 0.85, 4.0
"""Share of textured blocks from which an image is textured throughout, and the standard deviation
of such a block's pixels, out of 255. Objects on an empty background have fewer."""
SAME_TINT = 20.0
"""Difference in mean colour of a block, out of 255 and without brightness, below which textured
images may show one picture."""
BLOCK = 4
"""Side, in pixels, of the blocks that are compared."""
UNLIKE = 0.24
"""Block difference below which any two images are near duplicates. It is at most 0.13 for JPEG of
quality 20, below 0.2 for most of quality 40 at half the size (0.26 at most among 100 photographs),
and from 0.25 on for a product in another colour."""
TINT = 5.8
"""Difference in mean colour of a block, out of 255 and without brightness, that is equivalent to
`UNLIKE`: it is 6 to 9 between products in black and in dark blue or brown, and at most 5 for JPEG
of quality 40 at half the size."""
AXES = 16
"""Number of principal components in the search."""
NEAREST = 16
"""Maximum number of candidates for an image, and for its mirror image."""
FEWEST_LEVELS, MOST_LEVELS = 8.0, 50.0
"""Range to which standard deviations of pixels, out of 255, are clipped before division. The lower
limit keeps noise from being amplified; the upper one is there because neither the effect of
re-encoding nor the difference between, say, brown and black products grows with the contrast."""
BRIGHTNESS = 100.0
"""Difference in mean brightness, out of 255, that is equivalent to one standard deviation."""
SAMPLE, CHUNK = 2000, 1024
"""Number of images from which the components are computed, and of images in memory at once."""


@dataclasses.dataclass(frozen=True, eq=False)
class Likenesses:
    """Pairs of near duplicates, most similar first.

    Attributes:
        pairs: indices of images, int64 `[pairs, 2]`, the smaller one first; each pair once.
        differences: float32 `[pairs]`, difference of the block that differs most; 0 for equal
            pixels.
        mirrored: bool `[pairs]`, whether one resembles the mirror image of the other.
    """

    pairs: np.ndarray
    differences: np.ndarray
    mirrored: np.ndarray


def near_duplicates(images: np.ndarray, chosen: np.ndarray) -> Likenesses:
    """Find near duplicates among the images at the indices `chosen`, ascending int64 `[n]`.

    Images are uint8 `[examples, height, width, channels]`. `chosen` must not contain exact copies:
    an image with many of them would be compared with nothing else.
    """
    parts = [Likenesses(np.zeros((0, 2), np.int64), np.zeros(0, np.float32), np.zeros(0, bool))]
    if len(chosen) > 1:
        found = _candidates(images, chosen)
        for turned, (candidates, limits) in zip((False, True), found, strict=True):
            differences, alike = _compared(images, candidates, limits, mirrored=turned)
            pairs = candidates[alike]
            parts.append(Likenesses(pairs, differences[alike], np.full(len(pairs), turned)))
    pairs = np.concatenate([part.pairs for part in parts])
    differences = np.concatenate([part.differences for part in parts])
    mirrored = np.concatenate([part.mirrored for part in parts])
    order = np.lexsort((pairs[:, 1], pairs[:, 0], mirrored, differences))
    # Symmetric images match each other and each other's mirror image.
    _, first = np.unique(pairs[order], axis=0, return_index=True)
    kept = order[np.sort(first)]
    return Likenesses(pairs[kept], differences[kept], mirrored[kept])


def _candidates(images: np.ndarray, chosen: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield candidate pairs: of images, then of images and mirror images.

    These are ascending indices int64 `[pairs, 2]`, and float32 `[pairs]`, the distance of vectors
    below which a textured pair is alike.
    """
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
    scales = np.empty(count, np.float32)
    tree = cKDTree(views[0, :: -(-count // SCALED)])
    for start in range(0, count, CHUNK):
        raise_if_interrupted()
        usual, _ = tree.query(views[0, start : start + CHUNK], [USUAL], workers=-1)
        # Infinite if there are too few images.
        scales[start : start + CHUNK] = np.where(np.isinf(usual), 0, usual)[:, 0]
    sparse = np.flatnonzero(scales >= SPARSE)
    trees = cKDTree(views[0]), cKDTree(views[0, sparse])
    for view in views:
        close = _neighbours(trees[0], view, RADIUS)
        far = sparse[_neighbours(trees[1], view[sparse], REACH)]
        pairs = np.unique(np.concatenate([close, far]), axis=0)
        scale = scales[pairs].min(axis=1)
        limits = np.where(scale < SPARSE, 0, np.minimum(RELATIVE * scale, REACH))
        apart = np.linalg.norm(view[pairs[:, 0]] - views[0, pairs[:, 1]], axis=1)
        kept = apart < np.maximum(limits, RADIUS)
        yield chosen[pairs[kept]], limits[kept]


def _neighbours(tree: cKDTree, view: np.ndarray, radius: float) -> np.ndarray:
    """Find the points of a tree near those of its `view`, float32 `[n, axes]`, in the same order.

    Returns distinct pairs of different places, the smaller one first, int64 `[pairs, 2]`.
    """
    count = len(view)
    found = [np.zeros(0, np.int64)]
    for start in range(0, count, CHUNK):
        raise_if_interrupted()
        part = view[start : start + CHUNK]
        # One more, because an image is its own nearest neighbour.
        _, nearest = tree.query(part, NEAREST + 1, distance_upper_bound=radius, workers=-1)
        places = np.broadcast_to(np.arange(start, start + len(part))[:, None], nearest.shape)
        others = (nearest < count) & (nearest != places)
        ends = places[others], nearest[others]
        found.append(np.minimum(*ends) * count + np.maximum(*ends))
    # Most pairs are found twice.
    return np.stack(np.divmod(np.unique(np.concatenate(found)), max(1, count)), axis=1)


def _compared(
    images: np.ndarray, pairs: np.ndarray, limits: np.ndarray, *, mirrored: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Difference of each pair of images, float32 `[pairs]`, and whether they are alike, bool.

    `mirrored` flips the first ones.
    """
    differences, alike = np.zeros(len(pairs), np.float32), np.zeros(len(pairs), bool)
    turned = slice(None, None, -1 if mirrored else 1)
    with Tally("comparing images", len(pairs), " pairs") as tally:
        for start in range(0, len(pairs), CHUNK):
            raise_if_interrupted()
            part = slice(start, start + CHUNK)
            # An image is in many consecutive pairs.
            chosen, places = np.unique(pairs[part], return_inverse=True)
            one, other = places.reshape(-1, 2).T
            small = _small(images, chosen, MEASURED)
            (pixels, brightness), tints = _scaled(small), _tints(small)
            apart = np.mean((pixels[one][:, :, turned] - pixels[other]) ** 2, axis=-1)
            worst = (
                _block_means(apart).max(axis=(1, 2)) + (brightness[one] - brightness[other]) ** 2
            )
            tint = np.mean(_block_means(tints[one][:, :, turned] - tints[other]) ** 2, axis=-1)
            tint = np.sqrt(tint.max(axis=(1, 2)))
            differences[part] = np.maximum(np.sqrt(worst), tint / TINT * UNLIKE)
            smaller = _small(images, chosen, SEARCHED)
            distance = np.linalg.norm(
                _vectors(smaller[:, :, turned])[one] - _vectors(smaller)[other], axis=1
            )
            textured = _texture(small) >= TEXTURED
            alike[part] = (differences[part] < UNLIKE) | (
                (distance < limits[part]) & textured[one] & textured[other] & (tint < SAME_TINT)
            )
            tally.advance(len(one))
    return differences, alike


def _texture(small: np.ndarray) -> np.ndarray:
    """Compute the share of textured blocks of `[n, height, width, channels]`: float64 `[n]`."""
    grey = small.mean(axis=-1, dtype=np.float32)
    variances = _block_means(grey**2) - _block_means(grey) ** 2
    return (variances > LEVELS**2).mean(axis=(1, 2))


def _block_means(values: np.ndarray) -> np.ndarray:
    """Average values `[n, height, width, ...]` over blocks: float32 `[n, rows, columns, ...]`."""
    for axis in (1, 2):
        starts = np.arange(0, values.shape[axis], BLOCK)
        sizes = np.diff([*starts, values.shape[axis]]).astype(np.float32)
        shape = [len(starts) if each == axis else 1 for each in range(values.ndim)]
        values = np.add.reduceat(values, starts, axis=axis) / sizes.reshape(shape)
    return values


def _tints(small: np.ndarray) -> np.ndarray:
    """Subtract the brightness from each pixel of uint8 `[n, height, width, channels]`: float32."""
    pixels = small.astype(np.float32)
    return pixels - pixels.mean(axis=-1, keepdims=True)


def _small(images: np.ndarray, indices: np.ndarray, side: int) -> np.ndarray:
    """Shrink the images at `indices` to at most `side` by `side` pixels, RGB or grey.

    Returns uint8 `[n, height, width, channels]`.
    """
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
    """Convert images, uint8 `[n, height, width, channels]`, to vectors, float32 `[n, numbers]`.

    The distance of two vectors is the difference of the images as a single block.
    """
    pixels, brightness = _scaled(small)
    flat = pixels.reshape(len(small), -1)
    return np.concatenate([flat / np.sqrt(flat.shape[1]), brightness[:, None]], axis=1)


def _scaled(small: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normalise each image's pixels to mean 0 and, within limits, deviation 1, float32.

    Also returns the scaled means, float32 `[n]`.
    """
    pixels = small.astype(np.float32)
    every = (1, 2, 3)
    mean = pixels.mean(axis=every, keepdims=True)
    pixels -= mean
    deviation = np.sqrt(np.mean(pixels**2, axis=every, keepdims=True))
    return pixels / np.clip(deviation, FEWEST_LEVELS, MOST_LEVELS), mean.ravel() / BRIGHTNESS
