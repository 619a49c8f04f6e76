"""What a run leaves on disk, as types: every JSON file that bpgan reads back has its reader here, and only here.

Each reader takes the path of the file. It returns None (a log: no lines) where there is none, and raises ``Damaged``,
a ``UserError``, where the file is not what was written. Who resumes from a file lets that pass: the command is refused
in one line. Who only shows it says ``sound(read_result, path)``: a warning, and as if there were no file.
"""

import functools
import math
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec

from bpgan.files import Count, Damaged, Scalar, convert, decode, read_bytes, read_json
from bpgan.types import counted

_T = TypeVar("_T")

Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
"""Of an image, along one axis."""


FORMAT = 2
"""Of a run directory, as its ``config.json`` says: it grows where a run of before could not go on to the bit. Runs of
before it was written are of format 0: what is in their checkpoints is laid out in another way. Those of format 1 saw
their examples in another order. The logs and results of both read as those of today."""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """How a run was trained together with others.

    Attributes:
      lowering: see ``group.compile_group``.
      members: identities of all, in order.
    """

    lowering: str
    members: list[str]


class AttributesRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a run that is conditioned on attributes remembers of them: see ``data.attributes.Attributes.facts``."""

    names: Annotated[list[str], msgspec.Meta(min_length=1)]
    mean: list[float]
    std: list[float]
    low: list[float]
    high: list[float]
    shown: list[list[float]]


class DatasetRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a run remembers of a dataset of images: see ``data.Dataset.facts``.

    Attributes:
      parts: of several datasets in one, such as two sides of pairs or two domains, in order; else empty.
      words, prompts: of captions; else empty.
      attributes: that the run is conditioned on; None if it is on none.
    """

    name: str
    split: str
    shape: tuple[Size, Size, Size]
    counts: Annotated[list[Count], msgspec.Meta(min_length=1)]
    class_names: list[str]
    sha256: str
    parts: "list[DatasetRecord]" = []
    words: list[str] = []
    prompts: list[str] = []
    attributes: AttributesRecord | None = None


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """The run that a run began from.

    Attributes:
      place, run, experiment, step, data: which it is, its checkpoint, and the SHA-256 of what it was trained on.
      taken: how many arrays are its own.
      left: names of those that begin anew, with the reason.
    """

    place: str
    run: str
    experiment: str
    step: Count
    data: str = ""
    taken: Count = 0
    left: dict[str, str] = {}


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """What stands around a sample grid.

    Attributes:
      columns: the names of its columns, from the left.
      x, y: of a picture of a plane or a curve, what its axes are and where they begin and end.
      legend: of such a picture, colors ``#rrggbb`` and what they mean.
    """

    columns: list[str] = []
    x: tuple[str, float, float] | None = None
    y: tuple[str, float, float] | None = None
    legend: list[tuple[str, str]] = []


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``config.json``: which run this is.

    Attributes:
      experiment: its name.
      format: of the directory.
      run: what tells this run from every other; see ``directory.identity``.
      config: every flag.
      restart_safe: the flags that may differ when the run is resumed.
      data: SHA-256 of what it is trained on.
      dataset: of images, what a run remembers of them; None of other data, and of runs of before it was kept.
      images_per_step, versions, devices, git, command: what it is trained with.
      compiler: see ``compiler.circumstances``.
      group: of a run that is trained together with others, who they are and how.
      goal: ``min:METRIC`` or ``max:METRIC``, by which checkpoints rank.
      measure: what it is evaluated with while it trains.
      origin: the run that it began from, if any.
      title: what it is trained on, in words.
      parameters: how many numbers each player learns, by its name.
      frame: what its sample grids show; see ``cli.Experiment``.
    """

    experiment: str
    format: Count = 0
    config: dict[str, Scalar] = {}
    restart_safe: list[str] | None = None
    run: str = ""
    data: str = ""
    dataset: DatasetRecord | None = None
    images_per_step: Count | None = None
    versions: dict[str, str] = {}
    devices: list[str] = []
    compiler: dict[str, str] = {}
    git: str | None = None
    command: str = ""
    group: Group | None = None
    goal: str = ""
    measure: dict[str, str] = {}
    origin: Origin | None = None
    title: str = ""
    parameters: dict[str, Count] = {}
    frame: Frame = Frame()


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """``privacy.json``: what the guarantee of a private run was fixed to at its first start.

    Attributes:
      sampling, q, rows, noise_multiplier, clip, delta: see ``bpgan.privacy.accounting`` and ``data.poisson``.
      epsilon: what the run may spend; None: it has no limit.
      length, data: how many records there are, and the SHA-256 of them.
      guarantee: whether the key is secret and there is noise.
    """

    sampling: str
    q: float
    rows: Count
    noise_multiplier: float
    clip: float
    delta: float
    epsilon: float | None
    length: Count
    data: str
    guarantee: bool


class ResultRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``result.json`` and ``result_at_STEP.json``: how a run ended, or was at its pause.

    Attributes:
      status, step, metrics: see ``train.Result``; ``non-finite`` and ``anomaly``, too.
      anomalies: in words, the last one last.
      timings: seconds by activity.
      config: of a pause, the flags that asked for it.
      privacy: of a private run, what it has spent (``bpgan.privacy.accounting.record``).
    """

    status: str
    step: Count
    run: str = ""
    metrics: dict[str, float] = {}
    anomalies: list[str] = []
    timings: dict[str, float] = {}
    config: dict[str, Scalar] | None = None
    privacy: dict[str, Scalar] = {}


class _Line(msgspec.Struct, frozen=True):
    """What must be right in a line of the log, whatever else is in it."""

    step: Count
    anomaly: str = ""


class EvaluationRow(msgspec.Struct, frozen=True, kw_only=True):
    """A number of ``metrics.json`` and what it depends on; see ``bpgan.evaluation.rows``. It may have more keys."""

    metric: str
    value: float
    real: float | None = None
    untrained: float | None = None
    better: str | None = None
    classes: Count | None = None
    of_classes: Count | None = None
    checkpoint: str = ""
    step: Count | None = None
    flags: str = ""
    features: str = ""
    features_sha256: str = ""
    preprocessing: str = ""
    n: Count | None = None
    seed: int | None = None
    reference: str = ""
    reference_images: Count | None = None
    reference_sha256: str = ""
    train_sha256: str = ""
    real_of: str = ""
    real_images: Count | None = None
    real_reference_images: Count | None = None


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """As which job of a cluster a run was last submitted."""

    cluster: str
    folder: str
    id: str
    command: list[str]


def is_same_experiment(old: str, new: str) -> bool:
    """Whether two canonical names are of one experiment: equal, or ``old`` is a file that has moved to ``new``."""
    moved = os.path.isabs(new) and not os.path.exists(old)
    return old == new or (moved and os.path.basename(old) == os.path.basename(new))


def read_run(path: pathlib.Path) -> RunRecord | None:
    """A ``config.json``."""
    return read_json(path, RunRecord)


MANIFEST = "manifest/metadata"
"""In the folder of a checkpoint: what it says of itself. Without it, it is none."""


def has_checkpoint(workdir: pathlib.Path) -> bool:
    """Whether the run in a directory has been saved, and that is still there."""
    return any(workdir.glob("checkpoints/[0-9]*"))


def foreign_format(record: RunRecord) -> str:
    """Why this version of bpgan can neither go on with a run nor read its checkpoints; empty if it can."""
    if record.format == FORMAT:
        return ""
    whose = "an earlier" if record.format < FORMAT else "a later"
    return (
        f"holds a run of {whose} version of bpgan (format {record.format}, not {FORMAT}); go on with that version,"
        " or begin the run anew in another directory (CHANGELOG.md says what has changed)"
    )


SECRET, TERMS = ".secret", "privacy.json"
"""In a run directory: only a private run has them."""


def read_terms(path: pathlib.Path) -> Terms | None:
    """A ``privacy.json``."""
    return read_json(path, Terms)


def is_private(workdir: pathlib.Path) -> bool:
    """Whether the run in a directory learned from records that must not show: it is, too, if its terms are damaged."""
    return (workdir / TERMS).exists()


UNACCOUNTED = (
    "were computed on records and are not accounted for: they give away more than epsilon says"
)
"""Of the numbers of a private run that compare its samples with images."""


def guaranteed(result: ResultRecord | None) -> list[str]:
    """What is to be said of the privacy of a private run, in sentences."""
    privacy = result.privacy if result else {}
    if not privacy:
        return ["This run is private; it has not ended, and what it spent is in its log."]
    if not privacy.get("guarantee"):
        return ["This run guarantees no privacy: it has no noise, or its key is known."]
    epsilon, delta = privacy.get("epsilon"), privacy.get("delta_total", privacy.get("delta"))
    lines = [
        f"This run is private: epsilon = {epsilon:.4g} at delta = {delta:.3g} ({privacy.get('adjacency')})."
    ]
    return [*lines, "That holds for G and its samples, of this run alone."]


def read_result(path: pathlib.Path) -> ResultRecord | None:
    """A ``result.json`` or ``result_at_STEP.json``."""
    return read_json(path, ResultRecord)


def read_evaluations(path: pathlib.Path) -> list[EvaluationRow] | None:
    """The rows of a ``metrics.json``."""
    return read_json(path, list[EvaluationRow])


def evaluation(row: Any) -> EvaluationRow:
    """A row of ``read_evaluations``, of what was decoded. Raises ValueError if it is none."""
    return convert(row, EvaluationRow)


def is_evaluation(row: Any) -> bool:
    """Whether ``read_evaluations`` would read this as a row."""
    try:
        evaluation(row)
    except ValueError:
        return False
    return True


def sampled_from(row: EvaluationRow) -> str:
    """Whose samples a number is of: ``best checkpoint, step 938, truncation=0.7``."""
    step = "" if row.step is None else f"step {row.step}"
    checkpoint = "" if row.checkpoint in ("", str(row.step)) else f"{row.checkpoint} checkpoint"
    return ", ".join(filter(None, (checkpoint, step, row.flags)))


def compared(rows: Sequence[EvaluationRow]) -> list[str]:
    """In words, how many images each column of a table of numbers compares with how many, and what small counts do.

    The rows are those of one evaluation. Which images stand in the place of samples in ``real`` may differ by metric.
    """
    first = rows[0]
    if first.n is None or first.reference_images is None:
        return []
    samples = counted(first.n, "sample")
    found = [f"{samples} against {counted(first.reference_images, 'image')} of {first.reference}"]
    kinds: dict[tuple[Any, ...], list[str]] = {}
    for row in rows:
        names = kinds.setdefault((row.real_images, row.real_reference_images, row.real_of), [])
        if (name := row.metric.removesuffix(f"-{row.features}")) not in names:  # of whatever net
            names.append(name)
    usual = max(kinds, key=lambda kind: len(kinds[kind]))
    for (count, against, of), names in kinds.items():
        if count is not None:
            metrics = "" if (count, against, of) == usual else f" of {', '.join(names)}"
            whose, others = of or "the training data", against or first.reference_images
            found.append(f"real{metrics}: {counted(count, 'image')} of {whose} against {others:,}")
    if first.reference_images < first.n:
        found.append(
            f"{first.reference_images:,} images are few for {samples}: they make FD larger, that of real"
            " images too (FD-bias says by how much), and precision, recall, density and coverage change with both"
            " counts. Compare only numbers of the same counts"
        )
    return found


def circumstances(row: EvaluationRow) -> str:
    """What a number depends on beside the feature net: numbers compare only where this is the same."""
    return ", ".join(filter(None, (sampled_from(row), compared_with(row))))


def compared_with(row: EvaluationRow) -> str:
    """The same without whose samples they are: numbers of different models compare where this is the same."""
    hashes = "/".join(filter(None, (row.reference_sha256[:8], row.train_sha256[:8])))
    against = (
        "" if row.reference_images is None else f"{counted(row.reference_images, 'image')} of "
    )
    samples = "" if row.n is None else counted(row.n, "sample")
    reference = " ".join(filter(None, (row.reference and against + row.reference, hashes)))
    found = [
        " against ".join(filter(None, (samples, reference))),
        "" if row.seed is None else f"seed {row.seed}",
    ]
    return ", ".join(filter(None, found))


def said_of(origin: Origin) -> str:
    """From where a run began, in a sentence or two; names beyond the first few are counted."""
    taken = f"{counted(origin.taken, 'array is', 'arrays are')} taken"
    text = f"began from {origin.place} ({origin.experiment}, step {origin.step}): {taken}"
    left = [f"{name} {why}" for name, why in origin.left.items()]
    if not left:
        return text
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    return f"{text}, {counted(len(left), 'begins', 'begin')} anew: {'; '.join(left[:5])}{more}"


def read_ledger(path: pathlib.Path) -> dict[str, Any] | None:
    """What a sweep remembers: ``seconds``, and scores of settings by rung under ``rungs ...``.

    It decides what is trained: of a damaged one that is not guessed.
    """
    ledger = read_json(path, dict[str, Any])
    try:
        for key, value in (ledger or {}).items():
            if key == "seconds" and not 0 <= convert(value, float) < math.inf:
                raise ValueError(f"{value} seconds is no time")
            if key.startswith("rungs "):
                convert(value, list[list[float]])
    except ValueError as error:
        raise Damaged(path, f"is damaged ({error})") from None
    return ledger


def read_job(path: pathlib.Path) -> JobRecord | None:
    """A ``RUN.job``."""
    return read_json(path, JobRecord)


def read_log(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; none if there is no file. A torn last line is left out."""
    return [line for line, _ in _lines(path)]


def truncate_log(path: pathlib.Path, step: int) -> None:
    """Drops the lines after ``step`` and a torn last line; what is kept is kept byte for byte."""
    if path.exists():
        end = max([end for line, end in _lines(path) if line["step"] <= step], default=0)
        with path.open("rb+") as file:
            file.truncate(end)


def read_log_line(raw: bytes) -> dict[str, Any]:
    """One line of a log: numbers, of which null is NaN, and the anomaly in words. Raises ValueError if it is none."""
    line = decode(raw, dict[str, Any])
    convert(line, _Line)
    words = {"anomaly": line.pop("anomaly")} if "anomaly" in line else {}
    numbers = convert(line, dict[str, int | float | None])
    return {k: math.nan if v is None else v for k, v in numbers.items()} | words


def _lines(path: pathlib.Path) -> list[tuple[dict[str, Any], int]]:
    """Each line of the log with the position of its end."""
    raw = read_bytes(path) or b""
    lines, start = [], 0
    while (end := raw.find(b"\n", start) + 1) > 0:
        try:
            line = read_log_line(raw[start:end])
            if lines and line["step"] <= lines[-1][0]["step"]:
                raise ValueError(f"step {line['step']} after step {lines[-1][0]['step']}")
            lines.append((line, end))
        except ValueError as error:
            raise Damaged(path, f"line {len(lines) + 1} is not a log line ({error})") from None
        start = end
    return lines


def stated(record: msgspec.Struct) -> dict[str, Any]:
    """What of a record is other than its default."""
    default = fields(type(record)())
    return {name: value for name, value in fields(record).items() if value != default[name]}


def fields(record: msgspec.Struct | None) -> dict[str, Any]:
    """A record as a dictionary, and so the records in it; empty if there is none."""
    return {} if record is None else msgspec.to_builtins(record)


def sound(read: Callable[[pathlib.Path], _T], path: pathlib.Path) -> _T | None:
    """What a reader finds in a file, for who only shows it: None, and a warning, if it is damaged."""
    try:
        return read(path)
    except Damaged as error:
        warn(f"{error}; it is left out")
        return None


@functools.cache
def warn(text: str) -> None:
    """Prints a warning, once."""
    print(f"warning: {printable(text)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Text of a file for a terminal: in one line, and what a terminal would obey is written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
