"""The palette paper's supervision: windows of images, and the cluster of each pixel's colour."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError
from cnn_research.core.ranges import PositiveInt, Range, Seed, check_ranges
from cnn_research.data.dataset import Dataset, Split, check_window
from cnn_research.data.prepare import cache
from cnn_research.data.sources.folder import Photos

HEAD = "cluster"

CELL = 4
"""Levels of each channel that k-means treats as one."""

SAMPLE = 262_144
"""Pixels for mini-batch k-means, which finds the initial centroids."""

MAX_ITERATIONS = 2000


@register_config
@dataclasses.dataclass(frozen=True)
class Clustered:
    """Windows of another source's images, labelled with the cluster of every pixel.

    k-means over all pixels of the training images finds one set of clusters for all images; it runs
    until no assignment changes. Training images stay whole: a random window is cropped each time
    one is drawn. Images of other splits are divided into adjacent windows, each of which is an
    example.

    Clusters are computed on first use and cached beside the prepared data.
    """

    source: Any = Photos()
    """Source of the images."""
    clusters: Annotated[int, Range(minimum=2, maximum=256)] = 128
    """Number of colour clusters."""
    window: tuple[PositiveInt, PositiveInt] = (37, 37)
    """Height and width of the windows, which are the model's input."""
    seed: Seed = 0
    """Seed of the initial centroids of k-means."""

    @property
    def description(self) -> str:
        height, width = self.window
        return f"{self.source.description}, windows of {height}x{width}, {self.clusters} clusters"

    def load(self) -> Dataset:
        """Load images, uint8 `[examples, height, width, 3]`, and labels, uint8 without channels.

        The head `cluster` has one class per cluster, from dark to light, named by its hex colour.

        Raises:
            UsageError: images are smaller than a window or have no colours.
        """
        check_ranges(self, "data.")
        dataset = self.source.load()
        check_window(self.window, dataset)
        if (channels := dataset.image_shape[2]) != 3:
            raise UsageError(
                f"the images of {dataset.name} have {channels} channels: colour clusters need 3"
            )
        names, maps, facts = self._clustered(dataset)
        return Dataset(
            name=dataset.name,
            splits=dict(self._windows(dataset.splits, maps)),
            class_names={HEAD: names},
            provenance={**dataset.provenance, "clusters": facts},
            window=self.window,
        )

    def _windows(
        self, splits: Mapping[str, Split], maps: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[str, Split]]:
        for name, split in splits.items():
            if name == "train":
                yield name, Split(split.images, {HEAD: maps[name]}, split.names)
            else:
                images, labels = (side_by_side(x, self.window) for x in (split.images, maps[name]))
                each = len(images) // len(split)
                places = np.tile([f" {index}" for index in range(each)], len(split))
                names = split.names
                if names is not None:
                    names = np.char.add(np.repeat(names, each), places)
                yield name, Split(images, {HEAD: labels}, names)

    def _clustered(
        self, dataset: Dataset
    ) -> tuple[tuple[str, ...], dict[str, np.ndarray], dict[str, Any]]:
        """Load or compute the clusters' names, the cluster of each pixel per split, and facts."""
        content = hashlib.blake2b(digest_size=8)
        for split in dataset.splits.values():
            content.update(split.images.tobytes())
        key = cache.key_of([content.hexdigest(), self.clusters, self.seed])
        folder = cache.data_dir() / "clusters" / key
        cache.write_once(folder, lambda temporary: self._compute(dataset, temporary))
        maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in dataset.splits}
        centroids = np.load(folder / "centroids.npy")
        iterations, inertia = np.load(folder / "facts.npy").tolist()
        names = tuple("#" + bytes(colour).hex() for colour in np.rint(centroids).astype(np.uint8))
        facts = {"iterations": int(iterations), "mean squared distance": inertia, "seed": self.seed}
        return names, maps, facts

    def _compute(self, dataset: Dataset, folder: Path) -> None:
        """Write the centroids, 0 to 255, `[clusters, 3]`, and the cluster map of each split."""
        import jax
        import jax.numpy as jnp

        from cnn_research.ops import kmeans

        colours, weights = _colours_in_cells(dataset.splits["train"].images)
        rng = np.random.default_rng(self.seed)
        sample = colours[rng.choice(len(colours), SAMPLE, p=weights)]
        key = jax.random.key(self.seed)
        start = kmeans.minibatch_kmeans(jnp.asarray(sample), self.clusters, key)
        result = kmeans.kmeans(
            jnp.asarray(colours), self.clusters, key, start=start,
            weights=jnp.asarray(weights, jnp.float32), max_iterations=MAX_ITERATIONS,
        )  # fmt: skip
        centroids = np.asarray(result.centroids)
        centroids = centroids[np.argsort(centroids @ [0.2126, 0.7152, 0.0722], kind="stable")]
        for name, split in dataset.splits.items():
            codes, places = np.unique(_codes(split.images), return_inverse=True)
            indices, _ = kmeans.nearest(jnp.asarray(_colours(codes)), jnp.asarray(centroids))
            labels = np.asarray(indices).astype(np.uint8)[places].reshape(split.images.shape[:3])
            np.save(folder / f"{name}.npy", labels)
        np.save(folder / "centroids.npy", centroids)
        np.save(folder / "facts.npy", [int(result.iterations), float(result.inertia)])


def side_by_side(values: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Divide images into adjacent windows, row by row; incomplete windows are dropped.

    Maps `[examples, height, width, ...]` to `[examples * rows * columns, *window, ...]`.
    """
    examples, height, width, *rest = values.shape
    rows, columns = height // window[0], width // window[1]
    whole = values[:, : rows * window[0], : columns * window[1]]
    parts = whole.reshape(examples, rows, window[0], columns, window[1], *rest)
    return np.ascontiguousarray(parts.swapaxes(2, 3)).reshape(-1, *window, *rest)


def _colours_in_cells(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean colours of the RGB cube's occupied cells, float32 `[cells, 3]`, 0 to 255, and shares.

    On these, k-means takes seconds instead of minutes and finds the same clusters as on all pixels.
    """
    codes = _codes(images).ravel()
    red, green, blue = (codes >> 16, codes >> 8 & 255, codes & 255)
    cells = (red // CELL * 256 + green // CELL) * 256 + blue // CELL
    counts = np.bincount(cells)
    occupied = np.flatnonzero(counts)
    sums = [np.bincount(cells, channel)[occupied] for channel in (red, green, blue)]
    means = np.stack(sums, axis=-1) / counts[occupied, None]
    return means.astype(np.float32), counts[occupied] / counts.sum()


def _codes(images: np.ndarray) -> np.ndarray:
    """Pack each pixel's red, green and blue into an int32: `[examples, height, width]`."""
    red, green, blue = np.moveaxis(np.asarray(images), -1, 0).astype(np.int32)
    return red << 16 | green << 8 | blue


def _colours(codes: np.ndarray) -> np.ndarray:
    """Unpack colours from codes: float32 `[codes, 3]`, 0 to 255."""
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1).astype(np.float32)
