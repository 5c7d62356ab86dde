"""Filters against scipy, pools against a loop, and the galleries that draw both."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from cnn_research import ops
from cnn_research.cli.run import run
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import lookup
from cnn_research.data.augmentation.config import Augmentation
from cnn_research.ops.filters import (
    KERNELS,
    filter_image,
    filter_signal,
    gaussian,
    output_size,
)
from cnn_research.workflows.galleries.augmentations import (
    FIGURE_12,
    Augmentations,
    alone,
    described,
    figure_12,
)
from cnn_research.workflows.galleries.filters import (
    Filters,
    filters_figure,
    matrix,
    parse_kernel,
    size_lines,
    visible,
)
from cnn_research.workflows.galleries.pooling import POOLS, PoolingPyramid, pyramid

RNG = np.random.default_rng(0)
SCIPY_MODES = {"zeros": "constant", "edge": "nearest"}
SCIPY = {"correlation": scipy.ndimage.correlate, "convolution": scipy.ndimage.convolve}


def equal_to_rounding(found, expected):
    """To float32's rounding of sums of a few dozen terms."""
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6 * scale)


# Operations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", SCIPY)
@pytest.mark.parametrize("border", SCIPY_MODES)
@pytest.mark.parametrize("name", [*KERNELS, "random 5x5"])
def test_filters_are_scipys(name, border, operation):
    images = RNG.integers(0, 256, (2, 23, 31, 3)).astype(np.float32)
    kernel = np.array(KERNELS[name]) if name in KERNELS else RNG.normal(size=(5, 5))
    pad = len(kernel) // 2
    found = filter_image(images, kernel, padding=pad, border=border, operation=operation)
    assert found.shape == images.shape and found.dtype == np.float32
    for image, filtered in zip(images, found, strict=True):
        for channel in range(3):
            exact = image[..., channel].astype(np.float64)
            expected = SCIPY[operation](exact, kernel, mode=SCIPY_MODES[border])
            equal_to_rounding(filtered[..., channel], expected)


def test_stride_takes_every_other_place_and_padding_widens():
    image = RNG.normal(size=(1, 10, 13, 1)).astype(np.float32)
    kernel = RNG.normal(size=(3, 3))
    dense = filter_image(image, kernel, padding=4)
    assert dense.shape == (1, 16, 19, 1)
    equal_to_rounding(filter_image(image, kernel, padding=4, stride=3), dense[:, ::3, ::3])
    equal_to_rounding(filter_image(image, kernel), dense[:, 4:-4, 4:-4])


@pytest.mark.parametrize("length", [1, 4, 7])
@pytest.mark.parametrize("operation", ["correlation", "convolution"])
def test_signals_are_numpys(length, operation):
    signal, kernel = RNG.normal(size=20), RNG.normal(size=length)
    reference = {"correlation": np.correlate, "convolution": np.convolve}[operation]
    found = filter_signal(signal[None], kernel, operation=operation)[0]
    equal_to_rounding(found, reference(signal, kernel, mode="valid"))
    full = filter_signal(signal[None], kernel, padding=length - 1, operation=operation)[0]
    equal_to_rounding(full, reference(signal, kernel, mode="full"))


def test_the_palette_papers_dot_product():
    """[[1,0,0],[1,1,0],[1,1,1]] on [[1,0,1],[0,1,0],[1,0,1]] is 4."""
    image = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1]])[None, :, :, None]
    assert filter_image(image, np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]])) == 4


@pytest.mark.parametrize(
    ("size", "kernel", "padding", "stride", "expected"),
    [(5, 3, 1, 1, 5), (32, 5, 0, 1, 28), (96, 3, 1, 1, 96), (10, 3, 0, 1, 8), (6, 3, 0, 2, 2)],
)
def test_output_size(size, kernel, padding, stride, expected):
    assert output_size(size, kernel, padding, stride) == expected
    image = np.zeros((1, size, size, 1))
    found = filter_image(image, np.ones((kernel, kernel)), padding=padding, stride=stride)
    assert found.shape == (1, expected, expected, 1)


@pytest.mark.parametrize(
    ("numbers", "part"),
    [((5, 8, 1, 1), "longer than"), ((5, 3, 0, 0), "1 or more"), ((5, 3, -1, 1), "0 or more")],
)
def test_output_size_out_of_range(numbers, part):
    with pytest.raises(ValueError, match=part):
        output_size(*numbers)


def test_gaussian_is_a_bell_of_weights():
    bell = np.array(gaussian(15, 3.0))
    assert bell.sum() == pytest.approx(1)
    np.testing.assert_allclose(bell, bell[::-1])
    assert bell[7] / bell[4] == pytest.approx(np.exp(0.5))


@pytest.mark.parametrize("kind", POOLS)
def test_pools_are_a_loops(kind):
    reduce = {"max": np.max, "average": np.mean, "min": np.min}[kind]
    image = RNG.integers(0, 256, (2, 11, 14, 3)).astype(np.float32)
    expected = np.empty((2, 5, 7, 3), np.float32)
    for row in range(5):
        for column in range(7):
            window = image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            expected[:, row, column] = reduce(window, axis=(1, 2))
    pool = {"max": ops.max_pool, "average": ops.avg_pool, "min": ops.min_pool}[kind]
    equal_to_rounding(pool(image, 2), expected)
    equal_to_rounding(pyramid(image[0], POOLS[kind], 1)[1], expected[0])


# Pictures ----------------------------------------------------------------------------------------


@pytest.fixture
def photograph(tmp_path):
    """An image file of 40x60 pixels."""
    file = tmp_path / "photograph.png"
    Image.fromarray(RNG.integers(0, 256, (40, 60, 3), np.uint8)).save(file)
    return file


def pictures(workdir):
    report = (workdir / "report" / "report.md").read_text()
    found = sorted(file.stem for file in (workdir / "report").glob("*.png"))
    assert found and all(f"]({name}.png)" in report for name in found)
    return found, report


@pytest.mark.parametrize("operation", ["correlation", "convolution"])
def test_filters_of_an_image(photograph, tmp_path, operation):
    gallery = Filters(
        image=str(photograph), kernel="1 2; 3 4", stride=2, padding=0, operation=operation
    )
    run(gallery, tmp_path / "run")
    found, report = pictures(tmp_path / "run")
    assert found == ["channels_image", "filters_image", "signal"]
    assert operation.capitalize() in report
    assert "1 + (2·0 + 40 − 2)/2 = 20" in report
    assert json.loads((tmp_path / "run" / "config.json").read_text())["operation"] == operation


def test_a_page_is_drawn_anew_and_another_experiments_folder_refused(photograph, tmp_path):
    gallery = PoolingPyramid(name="pooling_pyramid", image=str(photograph), size=(9, 12), rounds=3)
    run(gallery, tmp_path / "run")
    assert pictures(tmp_path / "run")[0] == ["pyramid_image"]
    run(PoolingPyramid(name="pooling_pyramid", image=str(photograph), rounds=1), tmp_path / "run")
    assert "+ 446 − 2)/2" in pictures(tmp_path / "run")[1]
    with pytest.raises(UsageError, match="has a run of pooling_pyramid"):
        run(lookup("filters").experiment(), tmp_path / "run")


def test_events_hold_the_pictures(photograph, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(PoolingPyramid(image=str(photograph), size=(8, 8), rounds=1), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "events" / "report"))
    events.Reload()
    assert events.Tags()["images"] == ["pyramid_image"]


def test_the_figure_shows_what_was_computed():
    """Every panel: the filtered pixels themselves, the kernel below them and the size above."""
    pixels = RNG.integers(0, 256, (12, 16, 3)).astype(np.uint8)
    kernels = {name: KERNELS[name] for name in ("sharpen", "laplacian")}
    results = {
        name: np.asarray(filter_image(pixels[None], np.array(kernel))[0])
        for name, kernel in kernels.items()
    }
    axes = filters_figure(pixels, kernels, results, "Correlation", "").axes
    np.testing.assert_array_equal(axes[0].images[0].get_array(), pixels)
    for place, (name, kernel) in zip(axes[1:], kernels.items(), strict=True):
        shown = place.images[0].get_array()
        np.testing.assert_array_equal(shown, visible(results[name], kernel))
        assert place.get_title().endswith("(10, 14)")
        assert place.texts[0].get_text() == matrix(kernel)
    assert ", zero is grey" in axes[2].get_title()


def test_zero_is_mid_grey_where_a_kernel_sums_to_zero():
    flat = np.zeros((8, 8, 3), np.float32)
    assert (visible(flat, KERNELS["sobel_x"]) == 128).all()
    assert (visible(flat, KERNELS["identity"]) == 0).all()
    assert (visible(flat + 300, KERNELS["identity"]) == 255).all()


def test_matrices_are_written_with_a_common_fraction():
    assert matrix(KERNELS["gaussian_blur"]).splitlines() == [
        "     ⎡1 2 1⎤",
        "1/16 ⎢2 4 2⎥",
        "     ⎣1 2 1⎦",
    ]
    assert matrix(((0.123, -1.5), (2, 3))).splitlines() == ["⎡0.123  −1.5⎤", "⎣    2     3⎦"]
    assert matrix(((2.0,),)) == "[2]"


def test_a_size_that_does_not_divide_is_floored_and_said():
    lines = size_lines(Filters(stride=2), np.zeros((427, 640, 3)), 3)
    assert lines[0].endswith("1 + (2·1 + 427 − 3)/2 = 214")
    assert lines[1].endswith("1 + (2·1 + 640 − 3)/2 = 320.50, floored: 320")


def test_augmentations_of_an_image(photograph, tmp_path):
    """A picture for each kind of change that is on; figure 12 needs all of its six."""
    how = Augmentation(mirror=True, left=0.5, saturation=0.5, cutmix=1.0, fill="edge")
    gallery = Augmentations(image=str(photograph), size=(12, 16), draws=2, augmentation=how)
    run(gallery, tmp_path / "run")
    found, report = pictures(tmp_path / "run")
    assert found == ["mixed_image", "pixels_image", "places_image"]
    assert "padded with the edge pixels" in report


def test_figure_12_shows_each_change_as_it_was_made():
    pixels = RNG.integers(0, 256, (12, 16, 3)).astype(np.uint8)
    how = Augmentations().augmentation
    how = Augmentation(**{name: getattr(how, name) for name in FIGURE_12})
    rows = alone(how, pixels, draws=3, seed=0)
    assert set(rows) == set(FIGURE_12)
    assert described(how, "rotation") == "rotation: −30° to 30°"
    assert described(how, "zoom") == "zoom: 0.75 to 1.5"
    places = figure_12(pixels, rows, how).axes
    np.testing.assert_array_equal(places[0].images[0].get_array(), pixels)
    for place, (name, words) in zip(places[1:], FIGURE_12.items()):
        assert place.get_title() == words
        shown = place.images[0].get_array()
        assert any(np.array_equal(shown, drawn) for drawn in rows[name])
        assert not np.array_equal(shown, pixels)
    np.testing.assert_array_equal(rows["mirror"][0], pixels[:, ::-1])


def test_the_documents_pyramid():
    sizes = [(446, 450), (223, 225), (111, 112), (55, 56)]
    image = RNG.integers(0, 256, (446, 450, 3), np.uint8)
    for pool in POOLS.values():
        assert [level.shape[:2] for level in pyramid(image, pool, 3)] == sizes


def unusual_images():
    grey = RNG.integers(0, 256, (20, 30), np.uint8)
    yield "grey.png", Image.fromarray(grey), {}
    yield "deep.png", Image.fromarray(grey.astype(np.uint16) * 257), {}
    yield "clear.png", Image.fromarray(RNG.integers(0, 256, (20, 30, 4), np.uint8)), {}
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    yield "turned.jpg", Image.fromarray(grey), {"exif": exif}


@pytest.mark.parametrize("which", range(4))
def test_unusual_images(which, tmp_path):
    name, image, how = list(unusual_images())[which]
    image.save(tmp_path / name, **how)
    run(Filters(image=str(tmp_path / name), kernel="identity"), tmp_path / "run")
    height, width = (30, 20) if name == "turned.jpg" else (20, 30)
    report = pictures(tmp_path / "run")[1]
    assert f"height O = 1 + (2P + I − K)/S = 1 + (2·1 + {height} − 3)/1 = {height}" in report
    assert f"1 + (2·1 + {width} − 3)/1 = {width}" in report


# What is wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("gausian_blur", "did you mean 'gaussian_blur'?"),
        ("1 2 3; 4 5 6", "is not a square of numbers"),
        ("1 2 3 4 5", "is not a square of numbers"),
        ("1 2; 3 x", "is not a square of numbers"),
        ("1/0", "is not a square of numbers"),
    ],
)
def test_a_wrong_kernel(text, part):
    with pytest.raises(UsageError, match=part.replace("?", r"\?")):
        Filters(kernel=text).check()


def test_kernels_are_read_as_written():
    assert parse_kernel("0 -1 0; -1 5 -1; 0 -1 0") == KERNELS["sharpen"]
    assert parse_kernel("0,-1,0,-1,5,-1,0,-1,0") == KERNELS["sharpen"]
    assert parse_kernel(" ".join(["1/9"] * 9)) == KERNELS["mean_blur"]
    assert parse_kernel("sobel_y") == KERNELS["sobel_y"]


@pytest.mark.parametrize(
    ("gallery", "part"),
    [
        (Filters(stride=0), "--stride is 0"),
        (Filters(padding=-1), "--padding is -1"),
        (Filters(padding=10**6), "million"),
        (PoolingPyramid(size=(0, 5)), "--size"),
        (Augmentations(size=(0, 5)), "--size"),
        (Augmentations(draws=0), "--draws is 0"),
        (Augmentations(augmentation=Augmentation()), "has all changes off"),
        (Augmentations(augmentation=Augmentation(mirror=True, size=(9, 9))), "use --size"),
        (PoolingPyramid(rounds=0), "--rounds is 0"),
        (PoolingPyramid(size=(8, 100), rounds=4), "can be halved 3 times"),
    ],
)
def test_fields_out_of_range(gallery, part, tmp_path):
    with pytest.raises(UsageError, match=part):
        run(gallery, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_kernel_larger_than_the_image(photograph, tmp_path):
    gallery = Filters(image=str(photograph), kernel=" ".join(["1"] * 43**2))
    with pytest.raises(UsageError, match="43x43 kernel is larger than the padded image, 42x62"):
        run(gallery, tmp_path / "run")


@pytest.mark.parametrize("content", [b"not an image", b"", None])
def test_what_is_no_image(content, tmp_path):
    file = tmp_path / "image.png"
    if content is not None:
        file.write_bytes(content)
    for gallery in (Filters(image=str(file)), PoolingPyramid(image=str(file))):
        with pytest.raises(
            UserError, match=r"image\.png (is not an image|is an empty|does not exist)"
        ):
            run(gallery, tmp_path / "run")
    assert not (tmp_path / "run").exists()
