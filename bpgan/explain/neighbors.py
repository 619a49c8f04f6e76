"""The training images nearest to samples."""

import numpy as np

from bpgan.evaluation.images import embed_split
from bpgan.explain.subject import Absent, Found, Subject
from bpgan.metrics.neighbors import nearest
from bpgan.report import explore
from bpgan.report.tables import Table
from bpgan.runtime import images
from bpgan.types import counted


def neighboring(subject: Subject) -> Found:
    """The part ``neighbors``."""
    trained = subject.need_data().trained
    size = int(np.prod(subject.shape))
    if trained.length * size > 1 << 28:
        raise Absent(f"{counted(trained.length, 'training image')} are too many to compare at once")
    n, k = 8, 5
    x = subject.draw(subject.space_of_latents, subject.latents(n), subject.labels(n))
    whole, _ = trained.arrays()
    spaces = {"pixels": (x.reshape(n, -1) / 255.0, whole.reshape(len(whole), -1) / np.float32(255))}
    if subject.net is not None:
        features = embed_split(trained, subject.net, logits=True).features
        spaces["features of the classifier"] = (subject.net.function(x), features)
    else:
        subject.left_out.append(f"neighbors in features: {subject.classifier}")
    rng = np.random.default_rng(subject.wanted.seed)
    some = rng.choice(len(whole), min(500, len(whole)), replace=False)
    records, numbers, rows = [], {}, []
    for name, (queries, points) in spaces.items():
        distances, index = nearest(queries, points, min(k, len(whole)))
        records.append(explore.Neighbors(x, whole[index], distances, name))
        numbers[name] = {"distances": distances.tolist(), "indices": index.tolist()}
        few = points[some]
        apart = float(np.median(nearest(few, few, 1, exclude_self=True)[0]))
        rows.append(
            [
                name,
                f"{distances[:, 0].min():.3g}",
                f"{np.median(distances[:, 0]):.3g}",
                f"{apart:.3g}",
            ]
        )
    head = ["in", "nearest", "median", "between training images"]
    note = (
        "Distances of samples to their nearest training image; the last column has the median of those of 500 training"
        " images to each other."
    )
    table = Table("Nearest training images", head, rows, notes=[note])
    first = records[0]
    picture = np.concatenate([first.samples[:, None], first.nearest], 1).reshape(-1, *subject.shape)
    shows = {"neighbors": records, "tables": [table]}
    grid = images.image_grid(picture, columns=1 + first.nearest.shape[1])
    return Found(numbers, shows, {"neighbors": grid})
