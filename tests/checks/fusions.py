"""A shorter way from fusions to their code, which is half of a compilation of a step on a CPU."""

import jax

FUSIONS = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}
"""The option of XLA; JAX 0.11 has one way only."""
SHORT_FUSIONS = {"XLA_FLAGS": " ".join(f"--{name}=false" for name in FUSIONS)}
"""The same for the environment of processes."""
