"""Random changes to training images, inside jit."""
