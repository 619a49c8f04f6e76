"""What reports cost: the page of one long run, and a thousand runs compared.

    python -m benchmarks.reports [--lines=10000] [--runs=1000]

Each is compared with the least that any report has to do: ``json.loads`` of the same lines, in the same process and
round. CPU seconds, medians over ``--rounds``.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

METRICS = {
    f"{who}/{what}": 0.5 for who in ("d", "g") for what in ("loss", "grad_norm", "real", "fake")
}


def make_run(path: pathlib.Path, config: dict, lines: int) -> None:
    """A finished run with a log of ``lines`` lines of ten numbers each."""
    path.mkdir()
    record = {
        "experiment": "gan",
        "config": config,
        "images_per_step": 64,
        "versions": {},
        "devices": [],
    }
    (path / "config.json").write_text(json.dumps(record | {"command": "gan"}))
    (path / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": i, "epoch": i / 10, "time/elapsed": i / 7} | METRICS) + "\n"
            for i in range(1, lines + 1)
        )
    )
    result = {"status": "done", "step": lines, "metrics": METRICS}
    (path / "result.json").write_text(json.dumps(result))


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    from bpgan.report import compare
    from bpgan.report import page as report

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lines", type=int, default=10_000, help="of the log of the one run")
    parser.add_argument("--runs", type=int, default=1000, help="compared, 100 lines each")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one, many = pathlib.Path(folder, "one"), pathlib.Path(folder, "many")
        make_run(one, {"lr": 0.1}, args.lines)
        many.mkdir()
        for i in range(args.runs):
            make_run(
                many / str(i), {"lr": 10 ** -(1 + i // 3 % 9), "b1": i % 7 / 7, "seed": i}, 100
            )

        def parse(root: pathlib.Path) -> Callable[[], object]:
            logs = sorted(root.rglob("metrics.jsonl"))
            return lambda: [
                json.loads(line) for log in logs for line in log.read_text().splitlines()
            ]

        cases = {
            f"report of {args.lines:,} lines": (lambda: report.write_report(one), parse(one)),
            f"comparison of {args.runs:,} runs, 100 lines each": (
                lambda: compare.write(compare.read([many]), "", pathlib.Path(folder)),
                parse(many),
            ),
        }
        for name, (work, peer) in cases.items():
            work()  # imports
            pairs = [(cpu_seconds(work), cpu_seconds(peer)) for _ in range(args.rounds)]
            took = statistics.median(a for a, _ in pairs)
            ratio = statistics.median(a / b for a, b in pairs)
            print(f"{name}: {took:.2f} s, {ratio:.1f}x json.loads of the same lines")


if __name__ == "__main__":
    main()
