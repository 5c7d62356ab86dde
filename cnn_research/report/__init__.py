"""What a run shows: its page, its TensorBoard events, tables over many runs."""
