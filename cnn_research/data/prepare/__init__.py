"""Data sets on disk: prepared once, split, surveyed."""
