"""A training: its config, its loop, its evaluation."""
