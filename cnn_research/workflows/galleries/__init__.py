"""Experiments that draw pictures instead of training."""
