"""Tasks: what a model's outputs mean, and what is lost when they are wrong."""
