"""Data sets on disk: preparation, splits, caches."""
