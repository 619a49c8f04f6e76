"""What TensorBoard shows of a run, by its own reader, and that it is what the log says."""

import json
import pathlib

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def reader(folder):
    """Of all points; TensorBoard itself shows a sample of them."""
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})


def points_of(events):
    """``{name: [(step, value)]}`` of the curves, in the order in which they are drawn."""
    return {
        tag: [(event.step, np.float32(event.value).tobytes()) for event in events.Scalars(tag)]
        for tag in events.Reload().Tags()["scalars"]
    }


def logged_points(folder):
    """The same of ``metrics.jsonl``."""
    points = {}
    for line in map(json.loads, (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()):
        for name, value in line.items():
            if name not in ("step", "anomaly"):
                with np.errstate(over="ignore"):  # beyond float32 a point is infinite
                    point = line["step"], np.float32(value).tobytes()
                points.setdefault(name, []).append(point)
    return points


def assert_says_the_log(folder, grids=None):
    """Every point of every curve once; pictures of the steps ``grids``, if given."""
    events = reader(folder)
    assert points_of(events) == logged_points(folder)
    if grids is not None:
        tags = events.Tags()["images"]
        assert [e.step for tag in tags for e in events.Images(tag)] == list(grids)
