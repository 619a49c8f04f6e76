"""The version, importable without JAX so that packaging tools can read it."""

__version__ = "0.1.0"
