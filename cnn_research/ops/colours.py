"""Colour spaces (sRGB, CIELAB, OKLab) and the CIEDE2000 colour difference.

Colours are float32 `[..., 3]`. sRGB is 0 to 1; the white point of CIELAB is D65.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# IEC 61966-2-1: linear RGB -> XYZ of the 2 degree observer. Its rows sum to the white point.
_RGB_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_WHITE = _RGB_TO_XYZ.sum(axis=1)
_XYZ_TO_RGB = np.linalg.inv(_RGB_TO_XYZ)
# B. Ottosson, "A perceptual color space for image processing", 2020: linear RGB -> cone responses,
# and their cube roots -> OKLab.
_RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_THRESHOLD = 6 / 29
"""Where CIELAB's cube root and its linear part meet."""
_TINY = 1e-12
"""Added under roots, whose derivative at 0 is not finite."""


def srgb_to_lab(rgb: jax.Array) -> jax.Array:
    """Convert sRGB colours, 0 to 1, to CIELAB, L* 0 to 100."""
    xyz = _times(_linear(rgb), _RGB_TO_XYZ / _WHITE[:, None])
    root = jnp.cbrt(jnp.maximum(xyz, _THRESHOLD**3))
    x, y, z = jnp.moveaxis(
        jnp.where(xyz > _THRESHOLD**3, root, xyz / (3 * _THRESHOLD**2) + 4 / 29), -1, 0
    )
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def lab_to_srgb(lab: jax.Array) -> jax.Array:
    """Convert CIELAB colours to sRGB; clip colours out of gamut to 0 to 1."""
    lightness, a, b = jnp.moveaxis(lab, -1, 0)
    y = (lightness + 16) / 116
    roots = jnp.stack([y + a / 500, y, y - b / 200], axis=-1)
    xyz = jnp.where(roots > _THRESHOLD, roots**3, 3 * _THRESHOLD**2 * (roots - 4 / 29))
    return _encoded(_times(xyz, _XYZ_TO_RGB * _WHITE))


def srgb_to_oklab(rgb: jax.Array) -> jax.Array:
    """Convert sRGB colours, 0 to 1, to OKLab, L 0 to 1."""
    # The derivative of the cube root is not finite at black either.
    cones = jnp.maximum(_times(_linear(rgb), _RGB_TO_LMS), _TINY)
    return _times(jnp.cbrt(cones), _LMS_TO_OKLAB)


def ciede2000(first: jax.Array, second: jax.Array) -> jax.Array:
    """Perceived difference of CIELAB colours, `[...]`; about 1 is just noticeable.

    CIE 142-2001, as in G. Sharma, W. Wu and E. Dalal, "The CIEDE2000 color-difference formula",
    2005; the equation numbers are that paper's.
    """
    lightness_1, a_1, b_1 = jnp.moveaxis(first, -1, 0)
    lightness_2, a_2, b_2 = jnp.moveaxis(second, -1, 0)
    # Equations 2 to 5: greys are stretched along a.
    mean_chroma = (_length(a_1, b_1) + _length(a_2, b_2)) / 2
    stretch = 1.5 - 0.5 * jnp.sqrt(_seventh(mean_chroma) + _TINY)
    a_1, a_2 = a_1 * stretch, a_2 * stretch
    chroma_1, chroma_2 = _length(a_1, b_1), _length(a_2, b_2)
    # 7 to 11. As a chord, 2 sqrt(C1 C2) sin(dh / 2), the hue difference is continuous but for its
    # sign, which affects only the last term.
    hue_1, hue_2 = _hue(a_1, b_1), _hue(a_2, b_2)
    apart = hue_2 - hue_1
    apart = apart - 360 * jnp.sign(apart) * (jnp.abs(apart) > 180)
    chord = 2 * jnp.sqrt(chroma_1 * chroma_2 + _TINY) * jnp.sin(jnp.radians(apart) / 2)
    # 12 to 14.
    lightness = (lightness_1 + lightness_2) / 2
    chroma = (chroma_1 + chroma_2) / 2
    total = hue_1 + hue_2
    wrapped = jnp.where(total < 360, total + 360, total - 360)
    hue = jnp.where(jnp.abs(hue_1 - hue_2) > 180, wrapped, total) / 2
    # 15 to 21.
    tone = (
        1
        - 0.17 * _cosine(hue - 30)
        + 0.24 * _cosine(2 * hue)
        + 0.32 * _cosine(3 * hue + 6)
        - 0.20 * _cosine(4 * hue - 63)
    )
    middle = (lightness - 50) ** 2
    by_lightness = (lightness_2 - lightness_1) / (1 + 0.015 * middle / jnp.sqrt(20 + middle))
    by_chroma = (chroma_2 - chroma_1) / (1 + 0.045 * chroma)
    by_hue = chord / (1 + 0.015 * chroma * tone)
    bend = 30 * jnp.exp(-(((hue - 275) / 25) ** 2))
    twist = -2 * jnp.sqrt(_seventh(chroma) + _TINY) * jnp.sin(jnp.radians(2 * bend))
    squares = by_lightness**2 + by_chroma**2 + by_hue**2 + twist * by_chroma * by_hue
    return jnp.sqrt(jnp.maximum(squares, _TINY))


def _linear(rgb: jax.Array) -> jax.Array:
    """Decode sRGB values to linear light."""
    power = ((jnp.maximum(rgb, 0.04045) + 0.055) / 1.055) ** 2.4
    return jnp.where(rgb > 0.04045, power, rgb / 12.92)


def _encoded(linear: jax.Array) -> jax.Array:
    """Encode linear light as sRGB values, 0 to 1."""
    linear = jnp.clip(linear, 0, 1)
    power = 1.055 * jnp.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return jnp.where(linear > 0.0031308, power, 12.92 * linear)


def _times(colours: jax.Array, matrix: np.ndarray) -> jax.Array:
    # In full float32: accelerators would round the factors otherwise.
    return jnp.matmul(colours, jnp.asarray(matrix.T, jnp.float32), precision="highest")


def _length(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sqrt(a * a + b * b + _TINY)


def _hue(a: jax.Array, b: jax.Array) -> jax.Array:
    """Hue angle, 0 to 360 degrees; 0 for greys."""
    grey = a * a + b * b < _TINY
    angle = jnp.degrees(jnp.arctan2(jnp.where(grey, 0.0, b), jnp.where(grey, 1.0, a)))
    return jnp.where(angle < 0, angle + 360, angle)


def _cosine(degrees: jax.Array) -> jax.Array:
    return jnp.cos(jnp.radians(degrees))


def _seventh(chroma: jax.Array) -> jax.Array:
    """C^7 / (C^7 + 25^7), without overflow."""
    seventh = (chroma / 25) ** 7
    return seventh / (seventh + 1)
