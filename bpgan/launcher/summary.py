"""The tables at the end of a sweep: the final metrics of every run, and their means over seeds."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bpgan import cli
from bpgan.files import write_csv
from bpgan.launcher import outcomes, processes
from bpgan.launcher.runs import PlannedRun
from bpgan.measures import mean_of
from bpgan.privacy import accounting
from bpgan.runtime import records
from bpgan.types import UserError, counted


def summarize(
    runs: Sequence[PlannedRun], codes: Sequence[int | None], csv_path: pathlib.Path
) -> None:
    """Prints the final metrics of every run, their mean over seeds, and writes them all as CSV.

    Args:
      runs: at least one.
      codes: the exit code of each; None if it was not trained this time.
      csv_path: where to.
    """
    results = [_read_result(run, code) for run, code in zip(runs, codes, strict=True)]
    numbers = [result.get("metrics", {}) for result in results]
    rows = list(map(_describe, runs, codes, results))
    keys = list(dict.fromkeys(key for metrics in numbers for key in metrics))
    _write_table(csv_path, runs, rows, numbers, keys)
    shown = [key for key in keys if not key.startswith("time/") and not key.endswith("_norm")]
    print()
    print_table(
        [
            row | {key: f"{metrics[key]:.4g}" if key in metrics else "" for key in shown}
            for row, metrics in zip(rows, numbers, strict=True)
        ]
    )
    done = [i for i, code in enumerate(codes) if code == cli.DONE and numbers[i]]
    _print_means([runs[i] for i in done], [numbers[i] for i in done], shown)
    for line in spent_together(runs):
        print(f"\n{line}")
    print(f"\nall metrics: {csv_path}")


def _read_result(run: PlannedRun, code: int | None) -> Mapping[str, Any]:
    if code in (cli.DONE, cli.INTERRUPTED):
        return outcomes.read_result(run)
    result = {} if code is not None else outcomes.read_newest_result(run)
    # One that was not trained this time may have been before.
    return result if result.get("status") in ("paused", "interrupted") else {}


def _describe(run: PlannedRun, code: int | None, result: Mapping[str, Any]) -> dict[str, Any]:
    """The swept values of a run, and how far it is."""
    status = result.get("status") or processes.status_of(code)  # paused is no code
    values = {name: cli.show(value) for name, value in run.values.items()}
    return values | {"status": status, "step": result.get("step", "")}


def _write_table(
    path: pathlib.Path,
    runs: Sequence[PlannedRun],
    rows: Sequence[Mapping[str, Any]],
    numbers: Sequence[Mapping[str, float]],
    keys: Sequence[str],
) -> None:
    """Writes everything as CSV: of each run its row, directory and metrics."""
    names = list(rows[0])
    table = [
        [*row.values(), run.workdir, *(metrics.get(key, "") for key in keys)]
        for run, row, metrics in zip(runs, rows, numbers, strict=True)
    ]
    with processes.blame_root(path):
        write_csv(path, [*names, "workdir", *keys], table)


def _print_means(
    runs: Sequence[PlannedRun], numbers: Sequence[Mapping[str, float]], shown: Sequence[str]
) -> None:
    """Prints a second table if there are several seeds of a setting."""
    groups: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        if "seed" in run.values:
            groups.setdefault(run.name_setting(without={"seed"}), []).append(index)
    if not any(len(members) > 1 for members in groups.values()):
        return
    print("\nmean ± standard deviation over seeds")
    rows = []
    for members in groups.values():
        values = {k: cli.show(v) for k, v in runs[members[0]].values.items() if k != "seed"}
        means = {
            key: mean_of([numbers[i][key] for i in members if key in numbers[i]]) for key in shown
        }
        rows.append(values | {"seeds": str(len(members))} | means)
    print_table(rows)


def spent_together(runs: Sequence[PlannedRun]) -> list[str]:
    """Of private runs, what they spent together, a line for each dataset: whoever sees them all sees that much.

    Each has noise of its own, so they compose, whatever else about them is equal. A run that has no result yet is not
    counted, and the line says so.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        terms = records.sound(records.read_terms, run.workdir / records.TERMS)
        if terms is not None:
            privacy = outcomes.read_newest_result(run).get("privacy") or {}
            groups.setdefault(terms.data, []).append(privacy)
    return [_spent_on(found) for found in groups.values()]


def _spent_on(found: Sequence[Mapping[str, Any]]) -> str:
    said = [privacy for privacy in found if privacy]
    silent = len(found) - len(said)
    text = f"privacy: {counted(len(said), 'run')} on the same data"
    left = f"; {counted(silent, 'private run has', 'private runs have')} no result yet" * (
        silent > 0
    )
    known = sum(not privacy["guarantee"] for privacy in said)
    if known:
        return f"{text} guarantee nothing together, as {known} of them {'does' if known == 1 else 'do'} not{left}"
    try:
        spent = accounting.compose([accounting.from_record(privacy) for privacy in said])
    except UserError as error:
        return f"{text}: what they spent together is not known ({cli.message_of(error)}){left}"
    return (
        f"{text} spent epsilon={spent.epsilon:.4g} together (RDP {spent.rdp:.4g}, PLD {spent.pld:.4g};"
        f" {accounting.ADJACENCY}) at delta={spent.delta_total:.3g}{left}"
    )


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows of equal keys, right-aligned under their names."""
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())
