"""Random changes to training images, which depend on (seed, epoch, example), inside jit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError
from cnn_research.core.random import fold_name
from cnn_research.core.ranges import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt, Range
from cnn_research.data.augmentation import colour, erasing, geometry, mixing
from cnn_research.data.augmentation.erasing import EraseFill
from cnn_research.data.augmentation.geometry import Fill, rounded
from cnn_research.data.augmentation.rand_augment import STRONGEST, RandAugment
from cnn_research.data.augmentation.sample import AugmentationSample, numbers
from cnn_research.data.augmentation.stages import run_in_stages

Shares = tuple[Annotated[float, Range(above=0, maximum=1)], Annotated[float, Range(maximum=1)]]
Factors = tuple[Annotated[float, Range(above=0)], Annotated[float, Range(above=0)]]

_WARPS = {"crop", "zoom", "rotation", "left", "right", "up", "down", "rand_augment"}
"""Changes that need interpolation; flips and shifts alone are much cheaper."""


@register_config
@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes to training images; all are off by default.

    They are applied in the order of the fields, geometric ones in a single warp. Amounts are
    uniform in their ranges, aspect ratios log-uniform.
    """

    mirror: bool = False
    """Flip horizontally (left and right), with probability 1/2."""
    flip: bool = False
    """Flip vertically (upside down), with probability 1/2."""
    crop: Shares = (1.0, 1.0)
    """Random resized crop: range of its fraction of the image's area. Its aspect ratio is 3/4 to
    4/3 of the image's (Szegedy et al. 2015)."""
    zoom: Factors = (1.0, 1.0)
    """Zoom about the centre: range of factors; below 1 zooms out."""
    rotation: Annotated[float, Range(minimum=0, maximum=180)] = 0.0
    """Rotate about the centre by up to this many degrees either way."""
    left: Fraction = 0.0
    """Shift to the left by up to this fraction of the width, in whole pixels."""
    right: Fraction = 0.0
    """Shift to the right by up to this fraction of the width, in whole pixels."""
    up: Fraction = 0.0
    """Shift up by up to this fraction of the height, in whole pixels."""
    down: Fraction = 0.0
    """Shift down by up to this fraction of the height, in whole pixels."""
    shift: NonNegativeInt = 0
    """Shift by up to this many pixels, horizontally and vertically."""
    fill: Fill = "black"
    """Padding mode of geometric changes: black, the edge pixels, or the reflected image."""
    size: tuple[PositiveInt, ...] = ()
    """Height and width of the output images; empty for those of the input."""
    rand_augment: NonNegativeInt = 0
    """Number of RandAugment's fourteen changes to apply (Cubuk et al. 2020)."""
    magnitude: Annotated[float, Range(minimum=0, maximum=STRONGEST)] = 9.0
    """Magnitude of RandAugment's changes, 0 to 30."""
    brightness: Fraction = 0.0
    """Multiply pixels by a factor between 1 - this and 1 + this."""
    contrast: Fraction = 0.0
    """Multiply the difference from the mean grey by a factor between 1 - this and 1 + this."""
    saturation: Fraction = 0.0
    """Multiply the difference from the grey image by a factor between 1 - this and 1 + this."""
    cutout: NonNegativeInt = 0
    """Erase a square with this side in pixels, centred at random (DeVries and Taylor 2017)."""
    erasing: Fraction = 0.0
    """Random erasing: probability of erasing a box inside the image (Zhong et al. 2020)."""
    erasing_area: Shares = (0.02, 0.33)
    """Range of the box's fraction of the image's area."""
    erasing_aspect: Factors = (0.3, 3.3)
    """Range of the box's height divided by its width."""
    erase_fill: EraseFill = "black"
    """Fill of the areas that `cutout` and `erasing` erase: black, the image's mean, or noise."""
    mixup: NonNegativeFloat = 0.0
    """Mixup: average each image and its label with another's, with weights drawn from
    Beta(this, this) (Zhang et al. 2018)."""
    cutmix: NonNegativeFloat = 0.0
    """CutMix: replace a box by another training image's and mix the labels by area, which is drawn
    from Beta(this, this) (Yun et al. 2019). With mixup, each image gets one of the two."""
    choose: Literal["all", "one", "copies"] = "all"
    """How to combine the changes that are on. `all` applies each with its own probability. `one`
    applies one or none, with equal probabilities, chosen anew every epoch. `copies` trains on every
    image once unchanged and once with each change. With these two, a change is always applied."""

    @property
    def changes(self) -> tuple[str, ...]:
        """Names of the changes that are on, except mixup and CutMix."""
        ranges = {name for name in ("crop", "zoom") if getattr(self, name) == (1.0, 1.0)}
        names = (
            *("mirror", "flip", "crop", "zoom", "rotation", "left", "right", "up", "down"),
            *("shift", "rand_augment", "brightness", "contrast", "saturation", "cutout", "erasing"),
        )
        return tuple(name for name in names if getattr(self, name) and name not in ranges)

    @property
    def copies(self) -> int:
        """Number of times that each training image occurs per epoch."""
        return 1 + len(self.changes) if self.choose == "copies" else 1

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def check(self) -> None:
        """Raise `UsageError` for fields that do not fit together."""
        for name in ("crop", "zoom", "erasing_area", "erasing_aspect"):
            low, high = getattr(self, name)
            if low > high:
                flag = f"--augmentation.{name.replace('_', '-')}"
                raise UsageError(f"{flag} is {low} {high}: the lower number must be first")
        if len(self.size) not in (0, 2):
            raise UsageError(
                f"--augmentation.size is {' '.join(map(str, self.size))}: must be a height and a "
                "width"
            )
        if self.choose != "all" and self.mixes:
            name = "mixup" if self.mixup else "cutmix"
            raise UsageError(
                f"--augmentation.choose={self.choose} cannot be combined with "
                f"--augmentation.{name}: choose all, or do not mix"
            )
        if self.choose != "all" and not self.changes:
            raise UsageError(
                f"--augmentation.choose={self.choose} needs changes to choose from: set "
                "--augmentation.mirror, or another change"
            )

    def __call__(
        self, keys: jax.Array, images: jax.Array, copy: jax.Array | None = None
    ) -> jax.Array:
        """Change each image by its own key.

        Args:
            keys: `[batch]`.
            images: `[batch, height, width, channels]`, uint8, or float with pixels of 0 to 255; 1
                or 3 channels.
            copy: int `[batch]`, below `copies`, only for `choose="copies"`: 0 leaves an image
                unchanged, `k` applies only `changes[k - 1]`.
        """
        sample = AugmentationSample(numbers(keys), self.changes, self._chosen(keys, copy))
        drawn = None
        if self.rand_augment:
            drawn = RandAugment(
                fold_name(keys, "rand_augment"),
                self.rand_augment,
                self.magnitude,
                sample.applies("rand_augment"),
            )
        images = self._warp_geometry(sample, drawn, images)
        stages = [] if drawn is None else [drawn.coloured]
        images = run_in_stages([*stages, *self._colours(sample)], images)
        for hole in self._holes(sample, (images.shape[1], images.shape[2])):
            images = erasing.filled(images, hole, self.erase_fill, keys)
        return images

    def _chosen(self, keys: jax.Array, copy: jax.Array | None) -> jax.Array | None:
        """Number of the only change to each image, from 1, or 0 for none; None for all changes."""
        if self.choose == "all":
            return None
        if self.choose == "one":
            draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, 1 + len(self.changes)))
            return draw(fold_name(keys, "choose"))
        if copy is None:
            raise ValueError('choose="copies" needs the copy number of each image')
        return copy

    def _warp_geometry(
        self, sample: AugmentationSample, drawn: RandAugment | None, images: jax.Array
    ) -> jax.Array:
        """Apply all geometric changes at once and resize to `size`."""
        size = (images.shape[1], images.shape[2])
        out = (self.size[0], self.size[1]) if self.size else size
        if _WARPS & set(self.changes) or out != size:
            return geometry.warped(images, self._warp(sample, drawn, size, out), out, self.fill)
        for name, axis in (("mirror", 2), ("flip", 1)):
            if name in self.changes:
                turn = sample.applies(name, 0.5)[:, None, None, None]
                images = jnp.where(turn, jnp.flip(images, axis), images)
        return geometry.shifted(images, sample, self.shift, self.fill) if self.shift else images

    def _warp(
        self,
        sample: AugmentationSample,
        drawn: RandAugment | None,
        size: tuple[int, int],
        out: tuple[int, int],
    ) -> jax.Array:
        """Compose all geometric changes, from one image size to another: `[batch, 2, 3]`."""
        (height, width), batch = size, sample.batch
        one, none = jnp.ones(batch), jnp.zeros(batch)
        warps = []
        if {"mirror", "flip"} & set(self.changes):
            flip, mirror = (
                jnp.where(sample.applies(name, 0.5), -1.0, 1.0) if name in self.changes else one
                for name in ("flip", "mirror")
            )
            warps.append(geometry.scaling(flip, mirror))
        if "crop" in self.changes:
            warps.append(geometry.random_crop(sample, self.crop, size))
        if "zoom" in self.changes:
            smaller = 1 / sample.strength(1.0, "zoom", self.zoom)
            warps.append(geometry.scaling(smaller, smaller))
        if "rotation" in self.changes:
            limits = (-self.rotation, self.rotation)
            warps.append(geometry.rotation(sample.strength(0.0, "rotation", limits)))
        moves = {"left": width, "right": width, "up": height, "down": height}
        if {"shift", *moves} & set(self.changes):
            by = {
                name: jnp.round(length * sample.strength(0.0, name, (0, getattr(self, name))))
                for name, length in moves.items()
                if name in self.changes
            }
            down, right = geometry.random_shift(sample, self.shift) if self.shift else (none, none)
            down += by.get("down", none) - by.get("up", none)
            right += by.get("right", none) - by.get("left", none)
            warps.append(geometry.translation(-down, -right))
        if drawn is not None:
            warps.append(drawn.warp(size))
        if out != size:
            warps.append(geometry.scaling(one * (height / out[0]), one * (width / out[1])))
        return geometry.compose(*warps)

    def _colours(self, sample: AugmentationSample) -> list[Callable[[jax.Array], jax.Array]]:
        def stage(name: str, change: Callable[[jax.Array, jax.Array], jax.Array]):
            most = getattr(self, name)
            factor = sample.strength(1.0, name, (1 - most, 1 + most))
            return lambda images: rounded(change(images.astype(jnp.float32), factor), images.dtype)

        changes = {
            "brightness": colour.brightness,
            "contrast": colour.contrast,
            "saturation": colour.saturation,
        }
        return [stage(name, change) for name, change in changes.items() if name in self.changes]

    def _holes(self, sample: AugmentationSample, size: tuple[int, int]) -> list[jax.Array]:
        """Masks of the boxes to erase, as returned by `boxes`."""
        holes = []
        if "cutout" in self.changes:
            holes.append(erasing.cutout(sample, size, self.cutout))
        if "erasing" in self.changes:
            ranges = self.erasing_area, self.erasing_aspect
            holes.append(erasing.random_erasing(sample, size, self.erasing, *ranges))
        return holes

    def partners(self, keys: jax.Array, examples: int) -> jax.Array:
        """Draw the example with which each image is mixed, uint32 `[batch]`, possibly itself.

        Keys are `[batch]`.
        """
        draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, examples, "uint32"))
        return draw(fold_name(keys, "partner"))

    def mixed(
        self, keys: jax.Array, images: jax.Array, others: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mix each image with another by its own key; `mixup` or `cutmix` must be on.

        Images and others are `[batch, height, width, channels]`, as returned by `__call__`. Also
        returns the weight of each image's own label, float32 `[batch]`.
        """
        if not self.cutmix:
            return mixing.mixup(keys, images, others, self.mixup)
        pasted, pasted_share = mixing.cutmix(keys, images, others, self.cutmix)
        if not self.mixup:
            return pasted, pasted_share
        added, added_share = mixing.mixup(keys, images, others, self.mixup)
        adds = jax.vmap(jax.random.bernoulli)(fold_name(keys, "mix"))
        return (
            jnp.where(adds[:, None, None, None], added, pasted),
            jnp.where(adds, added_share, pasted_share),
        )
