"""Images and labels: the format of data sets, their sources, and their preparation on disk."""
