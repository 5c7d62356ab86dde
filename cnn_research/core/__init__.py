"""Base of all other packages: configs, run folders, errors, devices; knows no network."""
