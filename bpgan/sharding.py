"""The rows of a batch on the devices that share them out, where XLA does not see that each needs no others.

A run on several devices is one program that XLA splits (``jit``, all axes of the mesh automatic). Most operations
need no help. Those that do ask here how the rows of an array lie; in all other programs the functions change nothing.
"""

from collections.abc import Callable

import jax
from jax import lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def _mesh_of(like: jax.Array, rows: int) -> AbstractMesh | None:
    """The devices over which XLA splits the array, if ``rows`` can be shared out evenly among them."""
    mesh = jax.typeof(like).sharding.mesh
    automatic = mesh.axis_names and all(kind == AxisType.Auto for kind in mesh.axis_types)
    return mesh if automatic and rows % mesh.size == 0 else None


def split_as(like: jax.Array, x: jax.Array) -> jax.Array:
    """``x[b, ...]`` over the devices that share out the rows of ``like``."""
    mesh = _mesh_of(like, len(x))
    if mesh is None:
        return x
    return lax.with_sharding_constraint(x, NamedSharding(mesh, P(mesh.axis_names)))


def by_rows(
    f: Callable[..., jax.Array], *arrays: jax.Array, whole: tuple[jax.Array, ...] = ()
) -> jax.Array:
    """``f(*arrays, *whole)``, computed by each device from its own rows.

    Args:
      f: row i of its result, ``[b, ...]``, needs row i of the arrays only. It works on any number of rows.
      arrays: ``[b, ...]``.
      whole: what all rows need. It gets no gradient from here.
    """
    mesh = _mesh_of(arrays[0], len(arrays[0]))
    if mesh is None:
        return f(*arrays, *whole)
    rows = P(mesh.axis_names)
    specs = (rows,) * len(arrays) + (P(),) * len(whole)
    split = jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
    return split(*arrays, *whole)
