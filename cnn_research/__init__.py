"""Convolutional networks in JAX and Flax: one runner, every experiment a registered config."""
