"""Runs one experiment, a sweep or a search of them, on this machine or on a cluster."""
