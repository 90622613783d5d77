"""A run's folder: what a run leaves, and how it is read back."""
