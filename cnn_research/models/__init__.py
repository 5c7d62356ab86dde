"""Models: flax.linen modules, each of which is its own config.

Every module takes `images`, float32 `[batch, height, width, channels]`, and `train`, and returns
float32 logits `[batch, num_classes]`. A task sets `num_classes` from the data.
"""
