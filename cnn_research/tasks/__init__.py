"""Tasks: the meaning of a model's outputs, their loss and metrics."""
