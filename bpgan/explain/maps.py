"""What D, and a classifier of the dataset, look at."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bpgan.explain.subject import Absent, Found, Subject, floats
from bpgan.insight import attribution
from bpgan.report import explore
from bpgan.report.tables import Table
from bpgan.runtime import images
from bpgan.trained.run import Function
from bpgan.types import stream

_NODES = 256  # of the line from black, along which a network of leaky ReLUs has the most kinks


def attributed(subject: Subject) -> Found:
    """The part ``attribution``."""
    x, y, captions, references = _examples(subject)
    explained, numbers, tables = [], {}, []
    key = stream(jax.random.key(subject.wanted.seed), "attribution")
    d = subject.run.networks.get("discriminator")
    if d is not None:
        made, found = _maps(d, x, y, references, key)
        explained.append(_record(x, captions, made, "D"))
        found["randomized_weights"] = _randomized(subject, d, x, y)
        numbers["D"] = found
        tables.append(_completeness("What D looks at", made, found["randomized_weights"]))
    else:
        subject.left_out.append(f"attribution of D: a run of {subject.run.experiment} has none")
    if subject.net is not None and subject.net.traced is not None:
        seen = subject.logits(x).argmax(1).astype(np.int32)
        score = attribution.class_logit(subject.net.traced[1])
        made, found = _maps(score, x, seen, references, key)
        names = [
            f"{c}; seen as {subject.names_of_data[k]}" for c, k in zip(captions, seen, strict=True)
        ]
        explained.append(_record(x, names, made, "the classifier of the dataset"))
        numbers["classifier"] = found
        tables.append(_completeness("What the classifier looks at", made, None))
    else:
        subject.left_out.append(f"attribution of a classifier: {subject.classifier}")
    if not explained:
        raise Absent(
            f"a run of {subject.run.experiment} has no discriminator, and {subject.classifier}"
        )
    return Found(
        numbers,
        {"attributed": explained, "tables": tables},
        {"attribution": _overlays(explained[0])},
    )


def _examples(
    subject: Subject,
) -> tuple[np.ndarray, np.ndarray | None, list[str], np.ndarray | None]:
    """Floats of 8 training images, where they may be shown, and of 8 samples; labels, captions, and references."""
    z, y = subject.latents(8, 900), subject.labels(8)
    fakes = subject.draw(subject.space_of_latents, z, y)
    names = subject.names
    captions = [
        f"sample, {names[k]}" if y is not None else "sample" for k in (range(8) if y is None else y)
    ]
    try:
        trained = subject.need_data().trained
    except Absent as absent:
        subject.left_out.append(f"attribution of training images: {absent}")
        return floats(fakes), y, captions, None
    rng = np.random.default_rng(subject.wanted.seed)
    some = np.sort(rng.choice(trained.length, min(64, trained.length), replace=False))
    reals, of = trained.read(some)
    chosen = rng.choice(len(some), 8, replace=len(some) < 8)
    known = subject.names_of_data
    said = [f"real, {known[k]}" if len(known) > 1 else "real" for k in of[chosen]]
    labels = None if y is None else np.concatenate([of[chosen], y]).astype(np.int32)
    x = np.concatenate([reals[chosen], fakes])
    return floats(x), labels, [*said, *captions], floats(reals)


def _maps(
    score: Any, x: np.ndarray, labels: Any, references: np.ndarray | None, key: Any
) -> tuple[dict[str, attribution.Attribution], dict[str, Any]]:
    """By method."""
    given = {"labels": labels}
    made = {
        "integrated gradients, black": attribution.integrated_gradients(
            score, x, -1.0, nodes=_NODES, **given
        ),
        "integrated gradients, blurred": attribution.integrated_gradients(
            score, x, attribution.blurred(x).astype(np.float32), **given
        ),
        "gradient × input": attribution.gradient_times_input(score, x, -1.0, **given),
        "gradient": attribution.gradient(score, x, -1.0, **given),
        "SmoothGrad": attribution.smoothgrad(score, x, -1.0, key, **given),
    }
    if references is not None:
        made["integrated gradients, mean"] = attribution.integrated_gradients(
            score, x, attribution.mean(references).astype(np.float32), **given
        )
        made["expected gradients"] = attribution.expected_gradients(
            score, x, references, key, samples=128, **given
        )
    found = {
        name: {"residual": each.residual.tolist(), "difference": each.difference.tolist()}
        for name, each in made.items()
    }
    return made, found


def _record(
    x: np.ndarray, captions: Sequence[str], made: Mapping[str, attribution.Attribution], of: str
) -> explore.Attributed:
    first = next(iter(made.values()))
    maps = np.stack([each.map.sum(-1) for each in made.values()])
    residuals = np.stack([each.residual for each in made.values()])
    tiles = images.to_bytes(x)
    return explore.Attributed(tiles, captions, first.scores, list(made), maps, residuals, of)


def _randomized(subject: Subject, d: Function, x: np.ndarray, labels: Any) -> dict[str, Any]:
    """The check that maps depend on what D has learned (Adebayo et al. 2018), on four images."""
    algorithm, key = subject.run.algorithm, jax.random.key(subject.wanted.seed + 1)
    fresh = algorithm.networks["discriminator"].variables(algorithm.init(key))
    some, of = x[-4:], None if labels is None else labels[-4:]

    def explain(variables: Any) -> np.ndarray:
        return attribution.gradient(Function(d.apply, variables), some, -1.0, labels=of).map

    found = attribution.randomized_weights(explain, d.variables, fresh)
    return {
        "rank_correlations": found.correlations[-1].tolist(),
        "of_absolute_values": found.absolute[-1].tolist(),
        "left": found.left,
    }


def _completeness(
    title: str, made: Mapping[str, attribution.Attribution], randomized: dict[str, Any] | None
) -> Table:
    rows = [
        [name, f"{np.median(each.residual):.2g}", f"{each.residual.max():.2g}"]
        for name, each in made.items()
    ]
    notes = [
        "What a map leaves unexplained of the score's difference to the baseline, as a share of it."
    ]
    if "expected gradients" in made:
        notes.append(
            "What expected gradients leave is the error of a mean over 128 draws of references."
        )
    if randomized:
        notes.append(
            f"The gradient and that of a D with weights anew have the mean rank correlation {randomized['left']:.2f} in"
            " size: below 0.3 the maps depend on what D has learned. Maps that have the image as a factor, such as"
            " those of integrated gradients, keep its outline whatever D has learned."
        )
    return Table(title, ["method", "median residual", "greatest"], rows, notes=notes)


def _overlays(record: explore.Attributed) -> np.ndarray:
    """The images above their maps of the first method: red raises the score, blue lowers it."""
    gray = (
        record.images.mean(-1, keepdims=True)
        if record.images.shape[-1] == 1
        else record.images[..., :3]
    )
    plain = np.broadcast_to(gray, (*gray.shape[:3], 3)).astype(np.float64)
    maps = record.maps[0]
    scale = np.percentile(np.abs(maps), 99, axis=(1, 2), keepdims=True)
    a = np.clip(maps / np.where(scale > 0, scale, 1), -1, 1)[..., None]
    color = np.where(a > 0, [230.0, 40.0, 40.0], [50.0, 90.0, 240.0])
    shown = 0.4 * plain * (1 - np.abs(a)) + color * np.abs(a)
    half = max(len(plain) - 8, 0)
    order = [plain[:half], shown[:half], plain[half:], shown[half:]]
    x = np.concatenate([each for each in order if len(each)])
    return images.image_grid(np.rint(x).astype(np.uint8), columns=8)
