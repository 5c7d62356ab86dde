"""What is done with a trained network: predict, export, serve."""
