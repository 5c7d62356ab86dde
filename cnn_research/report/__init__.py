"""Reports: the page of a run, TensorBoard events, tables over many runs."""
