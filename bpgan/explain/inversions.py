"""The latents of given images, with samples as the control."""

from typing import NamedTuple

import numpy as np

from bpgan.explain.subject import Absent, Found, Subject, floats
from bpgan.insight import inversion
from bpgan.report import explore
from bpgan.report.tables import Table
from bpgan.runtime import images

_COUNT, _RESTARTS = 4, 4  # images of a kind, and starts of each


class Targets(NamedTuple):
    """Images uint8 ``[n, h, w, c]`` with their labels, None without labels, and what they are."""

    images: np.ndarray
    labels: np.ndarray | None
    captions: list[str]


def inverted(subject: Subject) -> Found:
    """The part ``inversion``."""
    space, steps = subject.space, subject.wanted.iterations
    tiles, y, captions = _targets(subject)
    starts = [space.points(subject.latents(len(tiles), 960 + r), y) for r in range(_RESTARTS)]
    bounds = None if space.bound == np.inf else (-space.bound, space.bound)
    some = subject.draw(subject.space_of_latents, subject.latents(200, 970), subject.labels(200))
    found = inversion.invert(
        space.draw,
        floats(tiles),
        np.stack(starts),
        steps=steps,
        labels=y,
        bounds=bounds,
        variance=float(np.var(floats(some))) or None,
    )
    record = explore.Inverted(tiles, images.to_bytes(found.images), captions, found.error)
    rows = [
        [caption, f"{error:.2g}", "yes" if close else "no"]
        for caption, error, close in zip(captions, found.error, found.found, strict=True)
    ]
    notes = [
        f"Mean squared error over the variance of the pixels of samples. {found.says} The samples are the control: G"
        " can draw them."
    ]
    table = Table("Inversion", ["image", "error", "found"], rows, notes=notes)
    numbers = {
        "captions": captions,
        "errors": found.error.tolist(),
        "latents": found.z.tolist(),
        "restarts": _RESTARTS,
        "steps": steps,
        "space": space.name,
    }
    picture = images.image_grid(np.concatenate([tiles, record.found]), columns=len(captions))
    return Found(numbers, {"inverted": record, "tables": [table]}, {"inversion": picture})


def _targets(subject: Subject) -> Targets:
    """Samples, held-out images where they may be shown, and the user's own."""
    z, y = subject.latents(_COUNT, 950), subject.labels(_COUNT)
    found = [subject.draw(subject.space_of_latents, z, y)]
    labels = [] if y is None else [y]
    of = [0] * _COUNT if y is None else y
    captions = ["sample" if y is None else f"sample, {subject.names[k]}" for k in of]
    try:
        others = subject.need_data().others
        rng = np.random.default_rng(subject.wanted.seed)
        chosen = rng.choice(others.length, min(_COUNT, others.length), replace=False)
        x, of = others.read(np.sort(chosen))
        known = subject.names_of_data
        found.append(x)
        labels += [of.astype(np.int32)] * (y is not None)
        captions += [f"held out, {known[k]}" if len(known) > 1 else "held out" for k in of]
    except Absent as absent:
        subject.left_out.append(f"inversion of held-out images: {absent}")
    # A picture of the user's has no label: it is searched for in every class.
    every = subject.run.classes or 1
    for name, image in subject.wanted.own:
        found.append(np.repeat(image[None], every, 0))
        labels += [np.arange(every, dtype=np.int32)] * (y is not None)
        captions += [name if y is None else f"{name}, as {label}" for label in subject.names]
    return Targets(np.concatenate(found), np.concatenate(labels) if labels else None, captions)
