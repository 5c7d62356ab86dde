"""Use of a trained network: predict, export, serve."""
