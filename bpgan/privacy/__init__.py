"""Training with differential privacy, and what can be said of the privacy of a run."""
