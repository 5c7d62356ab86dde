"""Predictions over HTTP from an exported network: `python -m cnn_research serve EXPORT`."""
