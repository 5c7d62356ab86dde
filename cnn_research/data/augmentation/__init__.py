"""Augmentation: random changes to training images inside jit."""
