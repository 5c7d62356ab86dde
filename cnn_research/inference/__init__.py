"""Use trained networks: predict, export, serve."""
