"""What the units of a layer of G do."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bpgan.evaluation.images import progress
from bpgan.explain.subject import Found, Subject, choose_layer
from bpgan.insight import units
from bpgan.report import explore
from bpgan.report.tables import Table
from bpgan.runtime import images
from bpgan.types import counted


def dissected(subject: Subject) -> Found:
    """The part ``units``."""
    wanted, space = subject.wanted, subject.space_of_latents
    n = min(wanted.samples, 100)
    z, y = subject.latents(n, 990), subject.labels(n)
    g = subject.bound(space, y)
    layers = units.layers(g, z)
    layer = choose_layer(wanted.layer, layers)
    logits = None if subject.net is None else subject.logits
    if logits is None:
        subject.left_out.append(f"effects of units on classes: {subject.classifier}")
    chosen = np.arange(layer.units)
    if layer.units > 512:
        chosen = np.sort(np.random.default_rng(wanted.seed).choice(layer.units, 512, replace=False))
        subject.left_out.append(f"units: 512 of the {layer.units} of {layer.name} were ablated")
    tell = progress(f"units of {layer.name}", len(chosen), "units")
    found = units.dissect(g, z, layer.name, logits, units=chosen, tell=tell)
    effect = found.pixels if found.histogram is None else found.changed
    assert effect is not None
    top = np.argsort(-effect, kind="stable")[:10]
    head, rows = ["unit", "pixels"], []
    if found.histogram is not None:
        head += ["class histogram", "classes changed", "class that loses most"]
    for i in top:
        row = [str(found.units[i]), f"{found.pixels[i]:.3g}"]
        if found.histogram is not None:
            assert found.changed is not None and found.probabilities is not None
            k = int(found.probabilities[i].argmin())
            row += [f"{found.histogram[i]:.3f}", f"{100 * found.changed[i]:.0f} %"]
            row.append(f"{subject.names_of_data[k]} {found.probabilities[i, k]:+.3f}")
        rows.append(row)
    notes = [
        f"Of {counted(n, 'sample')}: mean change of the pixels, total variation distance between the class histograms,"
        " and the share of samples that become another class, without a unit.",
        f"Controls: nothing ablated changes pixels by {found.none.pixels:.2g}; all units ablated change them by"
        f" {found.all.pixels:.3g}, and {100 * found.all.spread:.3g} % of the spread of the samples is left.",
    ]
    table = Table(f"Units of {layer.name}", head, rows, notes=notes)
    shown = _ablated(subject, g, z[:8], layer, found.units[top[:5]])
    captions = [
        f"{what}" for what in ["as they are", *(f"without unit {u}" for u in found.units[top[:5]])]
    ]
    flat = shown.reshape(-1, *subject.shape)
    pictures = [
        explore.Picture(
            f"Units of {layer.name}", flat, [c for c in captions for _ in range(8)], says=notes[0]
        )
    ]
    numbers = {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in found._asdict().items()
        if key not in ("layer", "none", "all")
    }
    numbers |= {"layer": layer.name, "layers": [each.name for each in layers]}
    numbers |= {"none": found.none._asdict(), "all": found.all._asdict()}
    picture = images.image_grid(flat, columns=8)
    return Found(numbers, {"tables": [table], "pictures": pictures}, {"units": picture})


def _ablated(
    subject: Subject, g: Callable[..., Any], z: np.ndarray, layer: units.Layer, chosen: np.ndarray
) -> np.ndarray:
    """Samples as they are, and without each of some units, ``[1 + u, n, h, w, c]``."""
    off = np.concatenate(
        [np.zeros((1, layer.units), bool), np.arange(layer.units) == chosen[:, None]]
    )
    drawn = jax.jit(jax.vmap(lambda one: units.ablate(g, z, layer.name, one)))(off)
    return images.to_bytes(np.asarray(drawn, np.float32))
