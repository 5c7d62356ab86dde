"""Reports: a run's page, TensorBoard events, tables over many runs."""
