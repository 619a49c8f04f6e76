"""The parts of an explanation, by name."""

from collections.abc import Callable

from bpgan.explain import ablations, inversions, maps, neighbors, paths, spectra, walks
from bpgan.explain.subject import Found, Subject

PARTS: dict[str, Callable[[Subject], Found]] = {
    "directions": walks.walked,
    "path": paths.measured,
    "attribution": maps.attributed,
    "inversion": inversions.inverted,
    "neighbors": neighbors.neighboring,
    "units": ablations.dissected,
    "spectrum": spectra.analyzed,
}
"""By the names of ``--what``."""
