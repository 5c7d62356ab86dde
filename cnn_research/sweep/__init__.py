"""Sweeps: many runs of one question, on this machine or on SLURM."""
