"""What everything else is built on: configs, run folders, errors, devices; knows no network."""
