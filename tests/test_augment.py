"""Augmentation: each change against SciPy, Pillow or plain NumPy, and by the image's key alone."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageEnhance, ImageOps

from cnn_research import ops
from cnn_research.core.errors import UsageError
from cnn_research.core.random import example_keys, stream_key
from cnn_research.core.ranges import check_ranges
from cnn_research.data.augmentation import colour, stages
from cnn_research.data.augmentation import geometry as warp
from cnn_research.data.augmentation.config import Augmentation
from cnn_research.data.augmentation.rand_augment import OPERATIONS, RandAugment

ROOT = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.integers(1, 256, (64, 8, 8, 3)), jnp.uint8)
PHOTOS = np.stack(
    [
        scipy.ndimage.zoom(RNG.uniform(0, 255, (6, 8, 3)), (5, 4, 1), order=1).astype(np.uint8)
        for _ in range(4)
    ]
)
"""Smooth, as photographs are: `[4, 30, 32, 3]`."""

# Every augmentation of the painters paper, and all others that have a random amount.
SIX = Augmentation(mirror=True, flip=True, rotation=20, zoom=(0.8, 1.2), left=0.2, right=0.2)
EVERY = dataclasses.replace(
    SIX,
    **dict(crop=(0.3, 0.9), up=0.2, down=0.3, shift=2, rand_augment=1, brightness=0.4),
    **dict(contrast=0.4, saturation=0.4, cutout=3, erasing=0.5, erase_fill="noise", fill="reflect"),
)


def keys_of(examples=range(64), *, seed=0, epoch=0):
    examples = jnp.asarray(np.array(examples), jnp.uint32)
    epochs = jnp.full(len(examples), epoch, jnp.uint32)
    return example_keys(stream_key(seed, "augmentation"), epochs, examples)


@functools.cache
def compiled(how):
    how.check()
    return jax.jit(how)


def augmented(how, *, seed=0, epoch=0, examples=range(64), images=IMAGES, copy=None):
    keys = keys_of(examples, seed=seed, epoch=epoch)
    copy = None if copy is None else jnp.full(len(keys), copy)
    return np.asarray(compiled(how)(keys, images[np.array(examples)], copy))


def batch(*numbers):
    return jnp.array(numbers, jnp.float32)


# What it depends on ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [Augmentation(mirror=True, shift=2, cutout=3), EVERY])
def test_augmentation_depends_on_seed_epoch_and_example_only(how):
    whole = augmented(how)
    others = np.random.default_rng(1).integers(0, 64, 64)
    assert np.array_equal(augmented(how, examples=others), whole[others])
    assert not np.array_equal(augmented(how, epoch=1), whole)
    assert not np.array_equal(augmented(how, seed=1), whole)


def test_a_change_draws_the_same_whatever_else_is_on():
    """Also where mirrors and moves go together with others into one warp."""
    alone = augmented(Augmentation(mirror=True, flip=True, shift=2, fill="edge"))
    without = Augmentation(mirror=True, flip=True, shift=2, fill="edge", zoom=(1.0, 1.0 + 1e-9))
    assert "zoom" in without.changes
    assert np.array_equal(augmented(without), alone)


def test_under_vmap_each_image_stays_the_same():
    pairs = jax.jit(jax.vmap(SIX))(
        keys_of().reshape(2, 32), IMAGES.reshape(2, 32, *IMAGES.shape[1:])
    ).reshape(IMAGES.shape)
    # Another program may round another way.
    assert np.abs(np.asarray(pairs, int) - augmented(SIX)).max() <= 1


@pytest.mark.slow
def test_batches_are_split_over_devices_without_exchange():
    code = """
import jax, numpy as np
from jax.sharding import PartitionSpec
from cnn_research.core.distributed import batch_sharded, data_mesh
from tests.test_augment import EVERY, IMAGES, augmented, keys_of
mesh = data_mesh()
assert mesh.size == 2
with jax.set_mesh(mesh):
    arguments = jax.device_put((keys_of(), IMAGES), batch_sharded(mesh))
    change = jax.jit(EVERY, out_shardings=batch_sharded(mesh)).lower(*arguments).compile()
    assert np.array_equal(change(*arguments), augmented(EVERY))
assert "all-gather" not in change.as_text() and "all-reduce" not in change.as_text()
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=os.environ | flags)


def test_no_augmentation_changes_nothing():
    assert np.array_equal(augmented(Augmentation()), IMAGES)
    assert Augmentation().changes == () and Augmentation().copies == 1


@pytest.mark.parametrize(("channels", "dtype"), [(1, "uint8"), (3, "float32")])
def test_type_and_shape_stay(channels, dtype):
    images = IMAGES[..., :channels].astype(dtype)
    out = augmented(EVERY, images=images)
    assert out.dtype == dtype and out.shape == images.shape
    assert out.min() >= 0 and out.max() <= 255


# Mirrors and moves -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "axis"), [("mirror", 1), ("flip", 0)])
@pytest.mark.parametrize("zoom", [(1.0, 1.0), (1.0, 1.0 + 1e-9)])
def test_mirrors_turn_about_half_of_the_images(name, axis, zoom):
    """Exactly, as they are and as a warp."""
    out, images = augmented(Augmentation(**{name: True}, zoom=zoom)), np.asarray(IMAGES)
    same = [np.array_equal(a, b) for a, b in zip(out, images)]
    turned = [np.array_equal(a, np.flip(b, axis)) for a, b in zip(out, images)]
    assert all(a != b for a, b in zip(same, turned))
    assert 16 < sum(turned) < 48


FILLS = {"black": "constant", "edge": "edge", "reflect": "reflect"}


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("zoom", [(1.0, 1.0), (1.0, 1.0 + 1e-9)])
def test_shift_moves_by_whole_pixels(fill, zoom):
    out = augmented(Augmentation(shift=2, fill=fill, zoom=zoom))
    wide = np.pad(np.asarray(IMAGES), ((0, 0), (2, 2), (2, 2), (0, 0)), mode=FILLS[fill])
    seen = set()
    for image, padded in zip(out, wide):
        moves = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if np.array_equal(image, padded[down : down + 8, right : right + 8])
        ]
        assert len(moves) == 1
        seen |= set(moves)
    assert {down for down, _ in seen} == {right for _, right in seen} == set(range(5))
    assert len(seen) > 15, "both directions move together"


@pytest.mark.parametrize(
    ("name", "axis", "sign"), [("up", 0, -1), ("down", 0, 1), ("left", 1, -1), ("right", 1, 1)]
)
def test_moves_go_where_they_say(name, axis, sign):
    out = augmented(Augmentation(**{name: 0.5}))
    moves = []
    for image, before in zip(out, np.asarray(IMAGES)):
        expected = [scipy.ndimage.shift(before, np.eye(3)[axis] * sign * by) for by in range(5)]
        (move,) = (by for by, moved in enumerate(expected) if np.array_equal(image, moved))
        moves.append(move)
    assert set(moves) == set(range(5)), "up to half of 8 pixels"


# Warps -------------------------------------------------------------------------------------------


def by_scipy(image, matrix, size, fill):
    """One image through a warp, in SciPy's words."""
    height, width = image.shape[:2]
    middle, out = (np.array([(h - 1) / 2, (w - 1) / 2]) for h, w in ((height, width), size))
    mode = {"black": "nearest", "edge": "nearest", "reflect": "mirror"}[fill]
    turn, move = matrix[:, :2].astype(float), matrix[:, 2].astype(float)
    offset = middle + move - turn @ out
    channels = [
        scipy.ndimage.affine_transform(
            image[..., c].astype(float), turn, offset, size, order=1, mode=mode
        )
        for c in range(image.shape[-1])
    ]
    places = np.einsum("ij,jrc->irc", turn, np.indices(size)) + offset[:, None, None]
    beyond = np.abs(places - middle[:, None, None]) - np.array([[[height]], [[width]]]) / 2
    # On the very border a place may fall on either side.
    keep = np.where(np.abs(beyond).min(axis=0) < 1e-4, np.nan, beyond.max(axis=0) < 0)
    result = np.stack(channels, axis=-1)
    return result * keep[..., None] if fill == "black" else result


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("size", [(30, 32), (17, 41)])
def test_warps_are_scipys(fill, size):
    matrices = warp.compose(
        warp.rotation(batch(0, 13, -77, 150)),
        warp.scaling(batch(1.5, 0.8, -1, 2), batch(1, 0.9, 1.3, -2)),
        warp.translation(batch(0, 2.25, -7, 40), batch(3, 0, 1.5, -3)),
    )
    found = warp.warped(jnp.asarray(PHOTOS), matrices, size, fill)
    assert found.dtype == np.uint8
    for image, matrix, one in zip(PHOTOS, np.asarray(matrices), np.asarray(found)):
        expected = by_scipy(image, matrix, size, fill)
        assert np.nanmax(np.abs(one - expected)) <= 0.51, "rounded to the nearest"
    exact = warp.warped(jnp.asarray(PHOTOS, jnp.float32), matrices, size, fill)
    assert exact.dtype == np.float32
    assert np.array_equal(np.round(exact), found)


def test_composed_warps_do_one_after_the_other():
    """Quarter turns and mirrors, where nothing is interpolated."""
    square = jnp.asarray(PHOTOS[:1, :, :30])
    quarter, mirror = warp.rotation(batch(90)), warp.scaling(batch(1), batch(-1))
    move = warp.translation(batch(-2), batch(5))
    found = warp.warped(square, warp.compose(quarter, mirror, move), (30, 30), "edge")[0]
    expected = np.rot90(square[0], -1)[:, ::-1]
    expected = np.pad(expected, ((2, 0), (0, 5), (0, 0)), mode="edge")[:30, 5:]
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found == expected).mean() > 0.99


@pytest.mark.parametrize("name", ["rotation", "zoom"])
def test_rotation_and_zoom_are_within_their_range(name):
    """Read off a bright spot that starts 20 pixels to the right of the middle."""
    images = np.zeros((64, 81, 81, 1), np.uint8)
    images[:, 38:43, 58:63] = 255
    how = {"rotation": Augmentation(rotation=30), "zoom": Augmentation(zoom=(0.5, 1.5))}[name]
    spots = [scipy.ndimage.center_of_mass(image[..., 0]) for image in augmented(how, images=images)]
    down, right = (np.array(spots) - 40).T
    if name == "rotation":
        np.testing.assert_allclose(np.hypot(down, right), 20, atol=0.3)
        values, limits = np.rad2deg(np.arctan2(down, right)), (-30, 30)
    else:
        np.testing.assert_allclose(down, 0, atol=0.1)
        values, limits = right / 20, (0.5, 1.5)
    span = limits[1] - limits[0]
    assert limits[0] - 0.5 <= values.min() < limits[0] + span / 8
    assert limits[1] - span / 8 < values.max() <= limits[1] + 0.5


def test_crops_are_parts_of_the_image_enlarged():
    """Read off an image whose two channels are its coordinates."""
    places = np.indices((60, 60)).transpose(1, 2, 0).astype(np.float32) * 4
    images = np.concatenate([places, places[..., :1]], axis=-1)[None].repeat(64, axis=0)
    out = augmented(Augmentation(crop=(0.25, 0.5)), images=images)[..., :2] / 4
    first, last = out[:, 5, 5], out[:, 54, 54]
    sides = (last - first) / 49
    area, aspect = sides.prod(axis=1), sides[:, 0] / sides[:, 1]
    assert 0.25 - 1e-4 < area.min() < 0.29 and 0.46 < area.max() < 0.5 + 1e-4
    assert 0.75 - 1e-4 < aspect.min() < 0.8 and 1.25 < aspect.max() < 4 / 3 + 1e-4
    corner = first - 5 * sides
    assert corner.min() > -0.5 and (corner + 59 * sides).max() < 59.5
    assert corner.min() < 2 and corner.max() > 25


def test_size_is_that_of_pillow():
    """Enlarged, where Pillow does not average; every image, changed or not."""
    how = Augmentation(size=(45, 80), mirror=True, choose="copies")
    plain, mirrored = (augmented(how, images=PHOTOS, examples=range(4), copy=c) for c in (0, 1))
    assert plain.shape == (4, 45, 80, 3)
    for image, one, other in zip(PHOTOS, plain, mirrored):
        expected = Image.fromarray(image).resize((80, 45), Image.Resampling.BILINEAR)
        assert np.abs(one.astype(int) - np.asarray(expected)).max() <= 1
        assert np.abs(other.astype(int) - one[:, ::-1]).max() <= 1


# Colours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "sharpness"])
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.7])
def test_factors_are_pillows(name, factor):
    enhance = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
        "sharpness": ImageEnhance.Sharpness,
    }[name]
    found = getattr(colour, name)(jnp.asarray(PHOTOS, jnp.float32), jnp.full(4, factor))
    for image, one in zip(PHOTOS, np.asarray(found)):
        expected = np.asarray(enhance(Image.fromarray(image)).enhance(factor), float)
        # Pillow cuts off fractions, of the grey image too.
        np.testing.assert_allclose(one, expected, rtol=0, atol=2)
        if factor == 1:
            assert np.array_equal(one, image)


@pytest.mark.parametrize("name", ["autocontrast", "equalise", "solarise", "posterise"])
def test_tables_are_pillows(name):
    images = (PHOTOS // 3 + 40).astype(np.uint8)
    images[3, ..., 1] = 77  # a channel of one level
    counts = colour.histogram(jnp.asarray(images))
    assert np.array_equal(counts[2, 1], np.bincount(images[2, ..., 1].ravel(), minlength=256))
    of_pillow, table = {
        "autocontrast": (ImageOps.autocontrast, colour.autocontrast(counts)),
        "equalise": (ImageOps.equalize, colour.equalised(counts)),
        "solarise": (lambda i: ImageOps.solarize(i, 90), colour.solarised(counts, jnp.full(4, 90))),
        "posterise": (
            lambda i: ImageOps.posterize(i, 3),
            colour.posterised(counts, jnp.full(4, 3)),
        ),
    }[name]
    found = np.asarray(colour.looked_up(jnp.asarray(images), table)).astype(int)
    for image, one in zip(images, found):
        expected = np.asarray(of_pillow(Image.fromarray(image)))
        assert np.abs(one - expected).max() <= (name == "autocontrast")  # Pillow cuts off
    after = colour.histogram(jnp.asarray(found, jnp.uint8))
    assert np.array_equal(colour.histogram_after(counts, table), after)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_changes_are_within_their_range(name):
    images = np.broadcast_to(PHOTOS[:1] // 4 + 96, (64, 30, 32, 3))
    out = augmented(Augmentation(**{name: 0.3}), images=images).astype(float)
    other = {
        "brightness": np.zeros(()),
        "contrast": images[0] @ np.array(colour.LUMA),
        "saturation": (images[0] @ np.array(colour.LUMA))[..., None],
    }[name]
    other = other.mean() if name == "contrast" else other
    before = images[0] - other
    factors = ((out - other) * before).sum(axis=(1, 2, 3)) / (before**2).sum()
    for factor, one in zip(factors, out):
        np.testing.assert_allclose(one, other + factor * before, atol=1.01)
    assert 0.69 < factors.min() < 0.75 and 1.25 < factors.max() < 1.31


@pytest.mark.slow
def test_rand_augment_does_what_it_drew():
    """One change per image: every operation by its reference, at its strength of 15 in 30."""
    examples = range(200)
    drawn = RandAugment(keys_of(examples), 1, 15, jnp.ones(200, bool))
    images = jnp.asarray(PHOTOS[np.arange(200) % 4])
    matrices = drawn.warp((30, 32))
    placed = np.asarray(warp.warped(images, matrices, (30, 32)))
    found = np.asarray(drawn.coloured(jnp.asarray(placed)))
    kinds = np.asarray(drawn._kinds)[:, 0]
    assert set(kinds) == set(range(14)) and np.bincount(kinds).max() < 35
    cos, sin = np.cos(np.deg2rad(15)), np.sin(np.deg2rad(15))
    shapes = {
        "rotate": lambda s: [[cos, -s * sin, 0], [s * sin, cos, 0]],
        "shear_x": lambda s: [[1, 0, 0], [s * 0.15, 1, 0]],
        "shear_y": lambda s: [[1, s * 0.15, 0], [0, 1, 0]],
        "translate_x": lambda s: [[1, 0, 0], [0, 1, s * round(32 * 75 / 331)]],
        "translate_y": lambda s: [[1, 0, s * round(30 * 75 / 331)], [0, 1, 0]],
    }
    both = {name: set() for name in OPERATIONS}
    for kind, image, one, m in zip(kinds, np.asarray(images), found, np.asarray(matrices)):
        name, pillow = OPERATIONS[kind], Image.fromarray(image)
        factors = [0.55, 1.45]
        exact = [np.asarray(pillow)]
        if name in ("colour", "sharpness", "contrast", "brightness"):
            enhance = getattr(ImageEnhance, name.replace("colour", "color").capitalize())(pillow)
            exact = [np.asarray(enhance.enhance(factor)) for factor in factors]
        elif name in ("autocontrast", "equalise", "solarise", "posterise"):
            operation = getattr(ImageOps, name.replace("ise", "ize"))
            arguments = {"solarise": (128,), "posterise": (6,)}.get(name, ())
            exact = [np.asarray(operation(pillow, *arguments))]
        elif name != "identity":
            sign = min((-1, 1), key=lambda s, shape=shapes[name], m=m: np.abs(shape(s) - m).max())
            np.testing.assert_allclose(m, shapes[name](sign), atol=1e-6)
            exact = by_scipy(image, m, (30, 32), "black")
            assert np.nanmax(np.abs(one - exact)) <= 1
            both[name].add(sign)
            continue
        off = [np.abs(one.astype(int) - e).max() for e in exact]
        assert min(off) <= 2, name
        both[name].add(int(np.argmin(off)))
    signed = [name for name, seen in both.items() if len(seen) == 2]
    assert set(signed) == set(OPERATIONS) - {
        *("identity", "autocontrast", "equalise", "solarise", "posterise")
    }


@pytest.mark.slow
def test_rand_augment_of_several_changes():
    images = jnp.asarray(PHOTOS[np.arange(64) % 4])
    weak = augmented(Augmentation(rand_augment=3, magnitude=0), images=images)
    strong = augmented(Augmentation(rand_augment=3, magnitude=30), images=images)
    same = [np.array_equal(a, b) for a, b in zip(weak, np.asarray(images))]
    # Two of fourteen do as much at any magnitude.
    assert 0.4 < np.mean(same) < 0.85
    assert np.mean([np.array_equal(a, b) for a, b in zip(strong, np.asarray(images))]) < 0.05


# Erasing -----------------------------------------------------------------------------------------


def test_cutout_blackens_one_square_with_its_centre_in_the_image():
    out = augmented(Augmentation(cutout=3))
    sizes = set()
    for image, before in zip(out, np.asarray(IMAGES)):
        hole = (image == 0).all(axis=-1)
        assert np.array_equal(image[~hole], before[~hole])
        rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
        assert hole.sum() == len(rows) * len(columns)
        for places in (rows, columns):
            assert np.array_equal(places, np.arange(places[0], places[-1] + 1))
        # At the border a part of the square lies outside.
        whole = [p for p in (rows, columns) if p[0] > 0 and p[-1] < 7]
        assert all(len(places) == 3 for places in whole)
        sizes.add(hole.sum())
    assert 9 in sizes
    assert min(sizes) >= 4, "the centre is in the image, so two rows and columns are at least"


@pytest.mark.parametrize("erase_fill", ["black", "mean", "noise"])
def test_erasing_takes_a_box_of_the_image(erase_fill):
    images = np.full((200, 50, 40, 3), (200, 100, 40), np.uint8)
    images[:, :25, :, 0], images[:, 25:, :, 0] = 190, 210
    how = Augmentation(erasing=0.7, erase_fill=erase_fill)
    out = augmented(how, images=images, examples=range(200))
    areas, aspects = [], []
    for image in out:
        hole = (image != images[0]).any(axis=-1)
        if not hole.any():
            continue
        rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
        shape = np.ptp(rows) + 1, np.ptp(columns) + 1
        inner = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if erase_fill == "noise":
            assert hole.sum() > 0.98 * shape[0] * shape[1]
            assert np.unique(inner).size > min(50, inner.size / 3)
        else:
            assert (inner == ((200, 100, 40) if erase_fill == "mean" else 0)).all()
        areas.append(shape[0] * shape[1] / 2000)
        aspects.append(shape[0] / shape[1] * 40 / 50)
    assert 0.6 < len(areas) / 200 < 0.8
    assert 0.015 < min(areas) < 0.05 and 0.28 < max(areas) < 0.36
    assert 0.25 < min(aspects) < 0.5 and 2 < max(aspects) < 4


# One of the changes ------------------------------------------------------------------------------


def test_the_painters_paper_has_seven_of_each_image():
    how = dataclasses.replace(SIX, choose="copies")
    assert how.changes == ("mirror", "flip", "zoom", "rotation", "left", "right")
    assert how.copies == 7
    assert SIX.copies == 1


def test_copy_zero_is_the_image_itself():
    how = dataclasses.replace(EVERY, choose="copies")
    assert how.copies == 17
    assert np.array_equal(augmented(how, copy=0), IMAGES)
    with pytest.raises(ValueError, match="needs the copy number"):
        augmented(how)


@pytest.mark.parametrize("number", range(1, 17))
def test_every_change_goes_alone(number):
    how = dataclasses.replace(EVERY, choose="copies")
    name = how.changes[number - 1]
    others = {
        "crop": (1.0, 1.0),
        "zoom": (1.0, 1.0),
        **{other: type(getattr(EVERY, other))() for other in how.changes[4:]},
        **dict(mirror=False, flip=False),
    }
    others.pop(name, None)
    certain = {"erasing": {"erasing": 1.0}}.get(name, {})
    alone = dataclasses.replace(EVERY, **{**others, **certain})
    assert alone.changes == (name,)
    found = augmented(how, copy=number)
    if name in ("mirror", "flip"):
        assert np.array_equal(found, np.flip(IMAGES, 2 if name == "mirror" else 1))
    else:
        # Another program may round another way.
        assert np.mean(found != augmented(alone)) < 0.01
        assert not np.array_equal(found, IMAGES)


def test_one_of_the_changes_or_none_is_made():
    """Each as often as the others, and another in another epoch."""
    examples = np.arange(700)
    images = np.broadcast_to(np.asarray(IMAGES[:1]), (700, 8, 8, 3))
    how = dataclasses.replace(SIX, choose="one", zoom=(1.3, 1.5), fill="edge")
    counts, numbers = np.zeros(7), []
    copies = [
        augmented(
            dataclasses.replace(how, choose="copies"), images=images, examples=examples, copy=k
        )
        for k in range(7)
    ]
    first, second = (
        augmented(how, images=images, examples=examples, epoch=epoch) for epoch in range(2)
    )
    assert not np.array_equal(first, second)
    for at, image in enumerate(first):
        found = [k for k in range(7) if np.array_equal(image, copies[k][at])]
        # A small move or turn may be none.
        assert found
        numbers.append(found[0])
        counts[found] += 1 / len(found)
    assert counts.min() > 60 and counts.max() < 145
    assert how.copies == 1


# Mixing ------------------------------------------------------------------------------------------


def test_partners_are_any_examples_by_the_key_alone():
    how = Augmentation(mixup=1.0)
    keys, some = keys_of(range(5000)), np.array([7, 4000])
    partners = np.asarray(how.partners(keys, 10))
    assert partners.dtype == np.uint32
    assert np.bincount(partners, minlength=11)[10] == 0
    assert np.abs(np.bincount(partners, minlength=10) - 500).max() < 5 * np.sqrt(450)
    assert np.array_equal(how.partners(keys[some], 10), partners[some])
    assert np.asarray(how.partners(keys[:50], 10**9)).max() > 10**8


def mixed(how, images, others):
    assert how.mixes
    how.check()
    return (np.asarray(a) for a in jax.jit(how.mixed)(keys_of(range(len(images))), images, others))


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_is_a_weighted_sum(alpha):
    others = IMAGES[::-1]
    out, share = mixed(Augmentation(mixup=alpha), IMAGES, others)
    assert out.dtype == np.uint8 and share.dtype == np.float32
    weight = share[:, None, None, None].astype(float)
    exact = weight * np.asarray(IMAGES) + (1 - weight) * np.asarray(others)
    assert np.abs(out - exact).max() <= 0.501
    keys = keys_of(range(4000))
    one = jnp.zeros((4000, 1, 1, 1))
    shares = np.asarray(Augmentation(mixup=alpha).mixed(keys, one, one)[1])
    assert abs(shares.mean() - 0.5) < 0.03
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_cutmix_gives_the_share_that_is_left():
    images, others = jnp.zeros((300, 12, 20, 1), jnp.uint8), jnp.ones((300, 12, 20, 1), jnp.uint8)
    out, share = mixed(Augmentation(cutmix=1.0), images, others)
    np.testing.assert_allclose(share, 1 - out.mean(axis=(1, 2, 3)), rtol=0, atol=1e-7)
    assert abs(share.mean() - 0.65) < 0.1, "half of the image, less what lies outside"
    for image in out[..., 0]:
        rows, columns = image.any(axis=1), image.any(axis=0)
        assert np.array_equal(image, rows[:, None] & columns)
        for places in (np.flatnonzero(rows), np.flatnonzero(columns)):
            assert not len(places) or len(places) == np.ptp(places) + 1


@pytest.mark.slow
def test_with_both_each_image_gets_one_of_them():
    images, others = jnp.zeros((300, 12, 20, 1)), jnp.full((300, 12, 20, 1), 200.0)
    both, share = mixed(Augmentation(mixup=1.0, cutmix=1.0), images, others)
    added, _ = mixed(Augmentation(mixup=1.0), images, others)
    pasted, _ = mixed(Augmentation(cutmix=1.0), images, others)
    is_added = np.array([np.array_equal(a, b) for a, b in zip(both, added)])
    is_pasted = np.array([np.array_equal(a, b) for a, b in zip(both, pasted)])
    assert (is_added | is_pasted).all()
    assert 110 < is_added.sum() < 190
    np.testing.assert_allclose(1 - both.mean(axis=(1, 2, 3)) / 200, share, atol=1e-6)


# What is wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        (dict(rotation=181.0), "rotation is 181"),
        (dict(rotation=float("nan")), "rotation is nan"),
        (dict(left=1.5), "left is 1.5: must be from 0 to 1"),
        (dict(shift=-1), "shift is -1: must be 0 or more"),
        (dict(zoom=(1.2, 0.8)), "zoom is 1.2 0.8"),
        (dict(zoom=(0.0, 1.0)), "zoom is 0.0: must be above 0"),
        (dict(crop=(0.5, 1.2)), "at most 1"),
        (dict(size=(32,)), "size is 32: must be a height and a width"),
        (dict(size=(0, 32)), "size is 0: must be above 0"),
        (dict(brightness=1.1), "brightness is 1.1"),
        (dict(cutout=-2), "cutout is -2"),
        (dict(erasing=2.0), "erasing is 2"),
        (dict(erasing_area=(0.1, 2.0)), "erasing-area"),
        (dict(erasing_aspect=(0.0, 2.0)), "erasing-aspect"),
        (dict(rand_augment=-1), "rand-augment is -1"),
        (dict(magnitude=31.0), "magnitude is 31.0: must be from 0 to 30"),
        (dict(mixup=-1.0), "mixup is -1"),
        (dict(cutmix=float("inf")), "cutmix is inf"),
        (
            dict(mirror=True, choose="copies", mixup=0.2),
            "choose=copies cannot be combined with --augmentation.mixup",
        ),
        (
            dict(mirror=True, choose="one", cutmix=0.2),
            "choose=one cannot be combined with --augmentation.cutmix",
        ),
        (dict(choose="one"), "needs changes to choose from"),
    ],
)
def test_fields_out_of_range(fields, part):
    with pytest.raises(UsageError, match=part):
        check_ranges(Augmentation(**fields), "augmentation.")
        Augmentation(**fields).check()


def test_changes_are_computed_apart_where_that_is_faster():
    """Fused into the first layer, a warp would be computed anew for each of its shifted slices."""
    images = jnp.arange(2 * 8 * 8 * 3, dtype=jnp.uint8).reshape(2, 8, 8, 3)

    def changed(images, step):
        return stages.materialize(lambda: images[:, ::-1] // 2, step)

    step = jnp.int32(0)
    for formulation in (ops.PLAIN, ops.default_formulation("cpu")):
        with ops.use_formulation(formulation):
            compiled = jax.jit(changed).lower(images, step).compile()
        assert ("conditional" in compiled.as_text()) == formulation.changes_apart
        np.testing.assert_array_equal(compiled(images, step), np.asarray(images)[:, ::-1] // 2)
