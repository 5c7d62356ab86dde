"""Registered experiments: one module per subject, imported automatically."""
