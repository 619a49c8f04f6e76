"""How fast samples change from latent to latent, and samples on the way."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bpgan.explain.subject import Found, Space, Subject
from bpgan.insight import geometry
from bpgan.report import explore
from bpgan.report.tables import Table
from bpgan.runtime import images
from bpgan.types import counted


def measured(subject: Subject) -> Found:
    """The part ``path``."""
    wanted, space = subject.wanted, subject.space
    n = min(wanted.samples, 500)
    y = subject.labels(n)
    ends = [space.points(subject.latents(n, seed), y) for seed in (800, 801)]
    straight = space.name == "w" or space.bound < np.inf
    path = geometry.lerp if straight else geometry.slerp
    t = np.random.default_rng(wanted.seed).uniform(size=n).astype(ends[0].dtype)
    g, rows, numbers = subject.bound(space, y), [], {}
    spaces: dict[str, Any] = {"pixels": None}
    if subject.net is not None and subject.net.traced is not None:
        spaces["features of the classifier"] = subject.net.traced[0]
    else:
        subject.left_out.append(f"path length in features: {subject.classifier}")
    for name, features in spaces.items():
        found = geometry.path_length(g, features, *ends, t, path)
        numbers[name] = {"mean": found.mean, "standard_error": found.standard_error, "n": n}
        rows.append([f"path length in {name}", f"{found.mean:.4g}", f"{found.standard_error:.2g}"])
    few = min(16, n)
    dimensions = int(np.prod(ends[0].shape[1:]))
    size = dimensions * int(np.prod(subject.shape)) * few
    k = None if size <= 1 << 26 else min(20, dimensions)
    spectrum = geometry.jacobian_spectrum(g, ends[0][:few], k)
    for what in ("dimension", "count", "condition"):
        each = np.asarray(getattr(spectrum, what), np.float64)
        error = each.std(ddof=1) / np.sqrt(len(each))
        name = {"count": f"singular values above {spectrum.threshold:g} of the largest"}.get(what)
        rows.append([name or f"local {what}", f"{each.mean():.4g}", f"{error:.2g}"])
    numbers["jacobian"] = {key: np.asarray(v).tolist() for key, v in spectrum._asdict().items()}
    numbers |= {"path": path.__name__, "space": space.name}
    note = f"Of {counted(n, 'path')} by {path.__name__} in {space.name}, and of the Jacobian at {few} points."
    table = Table("How samples change", ["what", "mean", "standard error"], rows, notes=[note])
    paths = _interpolated(subject, space, path)
    m, frames = paths.tiles.shape[:2]
    grid = images.image_grid(paths.tiles.reshape(m * frames, *subject.shape), columns=frames)
    shows = {"tables": [table], "paths": paths}
    return Found(numbers, shows, {"interpolations": grid})


def _interpolated(subject: Subject, space: Space, path: Callable[..., Any]) -> explore.Paths:
    """Samples between the first seeds, each path within one class."""
    frames, m, seed = 9, 6, subject.wanted.seed
    y = subject.labels(m)
    z = [np.concatenate([subject.latents(1, i + j) for i in range(m)]) for j in (0, 1)]
    a, b = (space.points(each, y) for each in z)
    points = [np.asarray(path(a, b, t), a.dtype) for t in np.linspace(0, 1, frames)]
    x = subject.draw(space, np.concatenate(points), None if y is None else np.tile(y, frames))
    tiles = np.moveaxis(x.reshape(frames, m, *x.shape[1:]), 0, 1)
    names = [f"seed {seed + i} to {seed + i + 1}" for i in range(m)]
    names = [n if y is None else f"{n}, {subject.names[y[i]]}" for i, n in enumerate(names)]
    return explore.Paths(names, tiles)
