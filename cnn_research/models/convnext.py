"""ConvNeXt: a residual network with design choices of vision transformers."""

from __future__ import annotations

import functools

import jax
from flax import linen as nn

from cnn_research.core.config import register_config
from cnn_research.models.layers import (
    Conv,
    Dtype,
    GlobalPool,
    ImageNetClassifier,
    Rate,
    Widths,
    check_lengths,
    check_size,
)
from cnn_research.models.registry import register_model

_INIT = nn.initializers.normal(0.02)
_Dense = functools.partial(nn.Dense, kernel_init=_INIT)
# Exact variances: in trained networks some channels have means far above their deviations.
_LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)


class ConvNeXtBlock(nn.Module):
    """A depthwise 7x7 convolution and two layers across channels, the first four times as wide,
    with a shortcut.

    In training the block is skipped for an image at the rate `drop_path` (stochastic depth, Huang
    et al. 2016).
    """

    drop_path: Rate = 0.0
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        channels = x.shape[-1]
        y = Conv(
            channels,
            (7, 7),
            padding=3,
            feature_group_count=channels,
            kernel_init=_INIT,
            dtype=self.dtype,
            name="conv_dw",
        )(x)
        y = _LayerNorm(dtype=self.dtype, name="norm")(y)
        y = _Dense(4 * channels, dtype=self.dtype, name="mlp.fc1")(y)
        y = nn.gelu(y, approximate=False)
        y = _Dense(channels, dtype=self.dtype, name="mlp.fc2")(y)
        y *= self.param("gamma", nn.initializers.constant(1e-6), (channels,)).astype(self.dtype)
        drop = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3), name="drop_path")
        return x + drop(y, deterministic=not train)


@register_config
class ConvNeXt(ImageNetClassifier):
    """Liu et al., 'A ConvNet for the 2020s' (2022).

    Layers are named as in timm, whose weights can be loaded.
    """

    blocks: Widths = (3, 3, 9, 3)
    """Blocks of each stage."""
    features: Widths = (96, 192, 384, 768)
    """Channels of each stage."""
    drop_path: Rate = 0.1
    """Stochastic depth: rate at which training skips the last block for an image; earlier blocks
    have linearly lower rates, from 0 for the first."""

    def check(self) -> None:
        """Raise `UsageError` for fields that do not fit together."""
        check_lengths("stage", blocks=self.blocks, features=self.features)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        check_size(self, images, 2 ** (1 + len(self.blocks)))
        conv = functools.partial(Conv, padding="VALID", kernel_init=_INIT, dtype=self.dtype)
        norm = functools.partial(_LayerNorm, dtype=self.dtype)
        x = conv(self.features[0], (4, 4), 4, name="stem.0")(images.astype(self.dtype))
        x = norm(name="stem.1")(x)
        done, last = 0, max(1, sum(self.blocks) - 1)
        for stage, (blocks, features) in enumerate(zip(self.blocks, self.features, strict=True)):
            if stage:
                x = norm(name=f"stages.{stage}.downsample.0")(x)
                x = conv(features, (2, 2), 2, name=f"stages.{stage}.downsample.1")(x)
            for block in range(blocks):
                name = f"stages.{stage}.blocks.{block}"
                x = ConvNeXtBlock(self.drop_path * done / last, self.dtype, name=name)(x, train)
                done += 1
        x = GlobalPool(name="head.global_pool")(x)
        x = norm(name="head.norm")(x)
        return self.logits(x, name="head.fc", kernel_init=_INIT)


for _name, _blocks, _width, _drop_path in (
    # timm's
    ("atto", (2, 2, 6, 2), 40, 0.1),
    ("femto", (2, 2, 6, 2), 48, 0.1),
    ("pico", (2, 2, 6, 2), 64, 0.1),
    ("nano", (2, 2, 8, 2), 80, 0.1),
    # The paper's
    ("tiny", (3, 3, 9, 3), 96, 0.1),
    ("small", (3, 3, 27, 3), 96, 0.4),
    ("base", (3, 3, 27, 3), 128, 0.5),
):
    register_model(
        f"convnext_{_name}",
        ConvNeXt(_blocks, tuple(_width * 2**stage for stage in range(4)), _drop_path),
        source="Liu et al. 2022, arXiv:2201.03545",
    )
