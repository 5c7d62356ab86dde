"""Colour spaces against published values; the difference of colours against its paper's table."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.ops import colours

# G. Sharma, W. Wu and E. Dalal, 2005, table 1: two CIELAB colours, and their CIEDE2000.
SHARMA = np.array(
    [
        [50.0000, 2.6772, -79.7751, 50.0000, 0.0000, -82.7485, 2.0425],
        [50.0000, 3.1571, -77.2803, 50.0000, 0.0000, -82.7485, 2.8615],
        [50.0000, 2.8361, -74.0200, 50.0000, 0.0000, -82.7485, 3.4412],
        [50.0000, -1.3802, -84.2814, 50.0000, 0.0000, -82.7485, 1.0000],
        [50.0000, -1.1848, -84.8006, 50.0000, 0.0000, -82.7485, 1.0000],
        [50.0000, -0.9009, -85.5211, 50.0000, 0.0000, -82.7485, 1.0000],
        [50.0000, 0.0000, 0.0000, 50.0000, -1.0000, 2.0000, 2.3669],
        [50.0000, -1.0000, 2.0000, 50.0000, 0.0000, 0.0000, 2.3669],
        [50.0000, 2.4900, -0.0010, 50.0000, -2.4900, 0.0009, 7.1792],
        [50.0000, 2.4900, -0.0010, 50.0000, -2.4900, 0.0010, 7.1792],
        [50.0000, 2.4900, -0.0010, 50.0000, -2.4900, 0.0011, 7.2195],
        [50.0000, 2.4900, -0.0010, 50.0000, -2.4900, 0.0012, 7.2195],
        [50.0000, -0.0010, 2.4900, 50.0000, 0.0009, -2.4900, 4.8045],
        [50.0000, -0.0010, 2.4900, 50.0000, 0.0010, -2.4900, 4.8045],
        [50.0000, -0.0010, 2.4900, 50.0000, 0.0011, -2.4900, 4.7461],
        [50.0000, 2.5000, 0.0000, 50.0000, 0.0000, -2.5000, 4.3065],
        [50.0000, 2.5000, 0.0000, 73.0000, 25.0000, -18.0000, 27.1492],
        [50.0000, 2.5000, 0.0000, 61.0000, -5.0000, 29.0000, 22.8977],
        [50.0000, 2.5000, 0.0000, 56.0000, -27.0000, -3.0000, 31.9030],
        [50.0000, 2.5000, 0.0000, 58.0000, 24.0000, 15.0000, 19.4535],
        [50.0000, 2.5000, 0.0000, 50.0000, 3.1736, 0.5854, 1.0000],
        [50.0000, 2.5000, 0.0000, 50.0000, 3.2972, 0.0000, 1.0000],
        [50.0000, 2.5000, 0.0000, 50.0000, 1.8634, 0.5757, 1.0000],
        [50.0000, 2.5000, 0.0000, 50.0000, 3.2592, 0.3350, 1.0000],
        [60.2574, -34.0099, 36.2677, 60.4626, -34.1751, 39.4387, 1.2644],
        [63.0109, -31.0961, -5.8663, 62.8187, -29.7946, -4.0864, 1.2630],
        [61.2901, 3.7196, -5.3901, 61.4292, 2.2480, -4.9620, 1.8731],
        [35.0831, -44.1164, 3.7933, 35.0232, -40.0716, 1.5901, 1.8645],
        [22.7233, 20.0904, -46.6940, 23.0331, 14.9730, -42.5619, 2.0373],
        [36.4612, 47.8580, 18.3852, 36.2715, 50.5065, 21.2231, 1.4146],
        [90.8027, -2.0831, 1.4410, 91.1528, -1.6435, 0.0447, 1.4441],
        [90.9257, -0.5406, -0.9208, 88.6381, -0.8985, -0.7239, 1.5381],
        [6.7747, -0.2908, -2.4247, 5.8714, -0.0985, -2.2286, 0.6377],
        [2.0776, 0.0795, -1.1350, 0.9033, -0.0636, -0.5514, 0.9082],
    ]
)


def test_ciede2000_of_the_papers_pairs_both_ways():
    first, second, expected = SHARMA[:, :3], SHARMA[:, 3:6], SHARMA[:, 6]
    for one, other in ((first, second), (second, first)):
        found = colours.ciede2000(jnp.asarray(one), jnp.asarray(other))
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("rgb", "lab", "oklab"),
    [
        ((0, 0, 0), (0, 0, 0), (0, 0, 0)),
        ((1, 1, 1), (100, 0, 0), (1, 0, 0)),
        ((1, 0, 0), (53.2408, 80.0925, 67.2032), (0.627955, 0.224863, 0.125846)),
        ((0, 1, 0), (87.7347, -86.1827, 83.1793), (0.866440, -0.233888, 0.179498)),
        ((0, 0, 1), (32.2970, 79.1875, -107.8602), (0.452014, -0.032457, -0.311528)),
    ],
)
def test_colours_of_the_cube_in_other_spaces(rgb, lab, oklab):
    np.testing.assert_allclose(colours.srgb_to_lab(jnp.array(rgb, jnp.float32)), lab, atol=0.02)
    np.testing.assert_allclose(colours.srgb_to_oklab(jnp.array(rgb, jnp.float32)), oklab, atol=2e-4)


def test_every_screen_colour_comes_back():
    steps = np.linspace(0, 1, 18, dtype=np.float32)
    rgb = jnp.asarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1))
    np.testing.assert_allclose(colours.lab_to_srgb(colours.srgb_to_lab(rgb)), rgb, atol=1 / 512)


def test_a_colour_that_no_screen_shows_is_cut():
    assert np.all(colours.lab_to_srgb(jnp.array([100.0, 120.0, -120.0])) <= 1)


def test_slopes_are_finite_at_black_white_grey_and_between_equal_colours():
    rgb = jnp.array([[0.0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [0.2, 0.7, 0.1]])

    def difference(rgb, other):
        return colours.ciede2000(colours.srgb_to_lab(rgb), colours.srgb_to_lab(other)).sum()

    for other in (rgb, rgb[::-1]):
        assert np.isfinite(jax.grad(difference)(rgb, other)).all()
    assert np.isfinite(jax.grad(lambda x: colours.srgb_to_oklab(x).sum())(rgb)).all()
    assert np.isfinite(jax.grad(lambda x: colours.lab_to_srgb(x).sum())(100 * rgb)).all()
