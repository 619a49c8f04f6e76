"""The latents of given images, with samples as the control."""

import numpy as np

from bpgan.explain.subject import Absent, Found, Subject, floats
from bpgan.insight import inversion
from bpgan.report import explore
from bpgan.report.tables import Table
from bpgan.runtime import images


def inverted(subject: Subject) -> Found:
    """The part ``inversion``."""
    space, wanted, count = subject.space, subject.wanted, 4
    z, y = subject.latents(count, 950), subject.labels(count)
    targets = [subject.draw(subject.space_of_latents, z, y)]
    labels = [] if y is None else [y]
    captions = [
        f"sample, {subject.names[k]}" if y is not None else "sample"
        for k in (range(count) if y is None else y)
    ]
    try:
        others = subject.need_data().others
        rng = np.random.default_rng(wanted.seed)
        x, of = others.read(
            np.sort(rng.choice(others.length, min(count, others.length), replace=False))
        )
        known = subject.names_of_data
        targets.append(x)
        labels += [of.astype(np.int32)] * (y is not None)
        captions += [f"held out, {known[k]}" if len(known) > 1 else "held out" for k in of]
    except Absent as absent:
        subject.left_out.append(f"inversion of held-out images: {absent}")
    # A picture of the user's has no label: it is searched for in every class.
    every = subject.run.classes or 1
    for name, image in wanted.own:
        targets.append(np.repeat(image[None], every, 0))
        labels += [np.arange(every, dtype=np.int32)] * (y is not None)
        captions += [name if y is None else f"{name}, as {label}" for label in subject.names]
    x = floats(np.concatenate(targets))
    of = np.concatenate(labels) if labels else None
    restarts = 4
    starts = np.stack([space.points(subject.latents(len(x), 960 + r), of) for r in range(restarts)])
    variance = float(
        np.var(
            floats(
                subject.draw(
                    subject.space_of_latents, subject.latents(200, 970), subject.labels(200)
                )
            )
        )
    )
    bounds = None if space.bound == np.inf else (-space.bound, space.bound)
    found = inversion.invert(
        space.draw, x, starts, steps=wanted.iterations, labels=of, bounds=bounds, variance=variance
    )
    tiles = images.to_bytes(x)
    record = explore.Inverted(tiles, images.to_bytes(found.images), captions, found.error)
    rows = [
        [c, f"{e:.2g}", "yes" if e <= inversion.FOUND else "no"]
        for c, e in zip(captions, found.error, strict=True)
    ]
    notes = [
        f"Mean squared error over the variance of the pixels of samples. {found.says} The samples are the control: G"
        " can draw them."
    ]
    table = Table("Inversion", ["image", "error", "found"], rows, notes=notes)
    errors = dict(zip(captions, found.error.tolist(), strict=True)) if wanted.own else {}
    numbers = {
        "captions": captions, "errors": found.error.tolist(), "restarts": restarts, "steps": wanted.iterations,
        "space": space.name, "of_own": errors,
    }  # fmt: skip
    both = np.concatenate([record.targets, record.found])
    picture = images.image_grid(both, columns=len(captions))
    return Found(numbers, {"inverted": record, "tables": [table]}, {"inversion": picture})
