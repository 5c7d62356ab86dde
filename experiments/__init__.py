"""Registered experiments: one file per subject, found by themselves."""
