"""Experiments that consist of several trainings, or of none."""
