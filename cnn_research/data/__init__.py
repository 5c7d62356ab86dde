"""Images and labels: what a data set is, the sources it comes from, and preparing it once."""
