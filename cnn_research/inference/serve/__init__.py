"""Serve predictions of an exported network over HTTP: `python -m cnn_research serve EXPORT`."""
