"""Everything that bpgan promises of a GPU, in one command of at most nine minutes.

    bash benchmarks/gpu_run.sh [PHASE...] [--out=DIR] [--seconds=540] [--rehearse]

The phases, the most important first; each is a process of its own with a time limit, and the next one starts whatever
became of it:

============  ========================================================================================================
machine       the card, packages and devices; a run, its resumption and their report by the command line; what float32
              means here
device        ``tests/accelerator``
bits          whether processes end in the same bits, with ``--deterministic=true``, which is the default, and with
              ``false``: one takes the program of the other, with other lengths of calls, one compiles it anew
peers         the article's GAN and the networks of ``sngan-32`` and ``r3-32`` against PyTorch
private       an update with the gradient of every record clipped, with and without noise, beside the plain one
sweep         1, 32 and 128 members of a sweep as one program
quality       ``lite28`` on digits for half a minute, and the Frechet distance of what it draws
============  ========================================================================================================

Every result is a line of JSON in ``DIR/results.jsonl``, written when it is known; the first line names the card, the
driver, the versions and the commit. ``--rehearse`` tries everything at tiny sizes on a CPU. ``--table`` prints the
tables of ``RESULTS.md`` from the results in ``DIR``, and measures nothing.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks import gpu, peers

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIMITS = {
    "machine": 45, "device": 90, "bits": 110, "peers": 150, "private": 35, "sweep": 35, "quality": 70,
}  # fmt: skip
"""Shares of the time; what a phase leaves is for those after it."""
LATE = 124
"""Exit code of a phase that has no time left."""
REHEARSED = 50
"""Seconds of each phase at most in a rehearsal."""
PRIVATE = tuple(
    f"{net}/bpgan, {form}"
    for net in ("mlp", "dcgan")
    for form in ("plain", "auto", "auto, with noise")
)
SWEEPS = ("mlp/vmap/1", "mlp/vmap/32", "mlp/vmap/128", "dcgan/vmap/1", "dcgan/vmap/32")
"""Names of peers of ``benchmarks.private`` and ``benchmarks.sweep``."""
RECIPES = {
    "article": ("mnist_gan", ["--preset=article"]),
    "mnist": ("mnist_gan", []),
    "sngan": ("image_gan", ["--preset=sngan-32"]),
    "r3": ("image_gan", ["--preset=r3-32", "--batch_size=64"]),
    "stylegan2": ("image_gan", ["--preset=stylegan2-32"]),
    "tiny": ("mnist_gan", ["--preset=smoke"]),
}
"""Experiments and flags; the images of ``image_gan`` are random."""


class Run(NamedTuple):
    """What every phase is given.

    Attributes:
      out: folder of the results.
      tiny: whether this is a rehearsal.
      seconds: of this phase; ``begun`` is its start, by the monotonic clock.
    """

    out: pathlib.Path
    tiny: bool
    seconds: float
    begun: float

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.begun)

    def say(self, phase: str, **row: Any) -> None:
        """Prints a result and keeps it at once, for nobody knows whether the next one comes."""
        line = json.dumps({"phase": phase, "at": round(time.monotonic() - self.begun, 1), **row})
        print(line, flush=True)
        with open(self.out / "results.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")


# --- Children -----------------------------------------------------------------------------------------------------


class Child:
    """A process in which one function of this module runs, in ``CHILDREN``; its answer is one line of JSON."""

    def __init__(self, name: str, *arguments: Any, limit: float, **environment: str):
        self.deadline = time.monotonic() + limit
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_run", "--child", name, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | environment,
        )

    def answer(self) -> dict[str, Any]:
        """What it found, or ``{"failed": reason}``."""
        try:
            said, _ = self.process.communicate(timeout=max(1.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            said, _ = self.process.communicate()
            return {"failed": f"no answer within its limit: {said[-300:]}"}
        lines = [line for line in said.splitlines() if line.startswith("@")]
        if self.process.returncode or not lines:
            return {"failed": f"exit code {self.process.returncode}: {said[-400:]}"}
        return json.loads(lines[-1][1:])


def recipe(name: str) -> Any:
    """The experiment of one of ``RECIPES``."""
    module, argv = RECIPES[name]
    return gpu.build(module, argv, (32, 32, 3) if module == "image_gan" else None)


def trained(name: str, steps: str, calls: str, deterministic: str) -> dict[str, Any]:
    """Hashes of the whole state before the first and after the last step, and the speed after them.

    The steps are grouped into so many calls of the compiled program, after a call of one step. ``deterministic`` is
    ``true`` or ``false``.
    """
    import jax
    import numpy as np

    def bits(carry: Any) -> str:
        found = hashlib.sha256()
        for leaf in jax.tree.leaves(carry.state):
            found.update(np.asarray(leaf).tobytes())
        return found.hexdigest()[:12]

    start = time.perf_counter()
    program = gpu.compiled(lambda: recipe(name), deterministic=deterministic == "true")
    carry = program.init()
    first = bits(carry)
    carry, finite = program.run(carry, 1)
    jax.block_until_ready(carry)
    compiled, done = time.perf_counter() - start, 1
    for i in range(int(calls)):
        k = (int(steps) - done) // (int(calls) - i)
        carry, finite = program.run(carry, k)
        done += k
    last = bits(carry)
    k, took = 1, 0.0
    while took < 0.8:
        k *= 2
        start = time.perf_counter()
        carry, finite = program.run(carry, k)
        jax.block_until_ready(carry)
        took = time.perf_counter() - start
    used = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return {
        "bits": [first, last],
        "finite": bool(finite),
        "first_call_s": round(compiled, 1),
        "steps_per_s": round(k / took, 2),
        "memory_mb": round(used / 1e6),
    }


def devices() -> dict[str, Any]:
    """Devices and their memory, and how far a float32 product and convolution are from the exact one here."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from bpgan.nets import conv

    rng = np.random.default_rng(0)
    x, w = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((8, 16, 16, 64), (3, 3, 64, 64))
    )
    left, right = x.reshape(-1, 64), w[0, 0]
    exact = left.astype(np.float64) @ right.astype(np.float64)
    errors = {}
    for level in ("default", "highest"):
        with jax.default_matmul_precision(level):
            product = np.asarray(jnp.asarray(left) @ jnp.asarray(right), np.float64)
            errors[f"product, {level}"] = float(np.abs(product - exact).max() / np.abs(exact).max())
            errors[f"convolution, {level}"] = np.asarray(conv.conv(x, w, padding=1), np.float64)
    narrow, wide = errors["convolution, default"], errors.pop("convolution, highest")
    errors["convolution, default"] = float(np.abs(narrow - wide).max() / np.abs(wide).max())
    device = jax.devices()[0]
    return {
        "devices": [str(d.device_kind) for d in jax.devices()],
        "memory_mb": round((device.memory_stats() or {}).get("bytes_limit", 0) / 1e6),
        "relative_errors": errors,
    }


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {"trained": trained, "devices": devices}


# --- Phases -------------------------------------------------------------------------------------------------------


def machine(run: Run) -> None:
    run.say("machine", **Child("devices", limit=run.left).answer())
    folder = run.out / "smoke"
    for steps in (8, 12):  # the second resumes the first
        command = [
            sys.executable, "-m", "experiments.mnist_gan", "--preset=smoke", "--tensorboard=false",
            f"--workdir={folder}", f"--steps={steps}",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=max(1.0, run.left)
            )
        except subprocess.TimeoutExpired:
            run.say("machine", command=" ".join(command[1:]), failed="no time left")
            return
        said = (done.stdout + done.stderr).strip()
        run.say("machine", command=" ".join(command[1:]), code=done.returncode, said=said[-300:])


def bits(run: Run) -> None:
    names, steps = (["tiny"], 8) if run.tiny else (["mnist", "sngan", "stylegan2", "r3"], 60)
    for mode, part in (("true", 0.6), ("false", 1.0)):  # the default first

        def start(name: str, calls: int, i: int, mode: str = mode, part: float = part) -> Child:
            cache = str(run.out / "cache" / f"{name}-{mode}-{i}")
            environment = {"JAX_COMPILATION_CACHE_DIR": cache}
            limit = run.left * part
            return Child("trained", name, steps, calls, mode, limit=limit, **environment)

        started = {name: (start(name, 1, 0), start(name, 1, 1)) for name in names}
        compiled = {name: (a.answer(), b.answer()) for name, (a, b) in started.items()}
        # The program of the first from its cache, and the steps in other calls, as after a resumption.
        again = {name: start(name, 4, 0) for name in names}
        for name, (first, anew) in compiled.items():
            cached = again[name].answer()
            run.say(
                "bits", name=name, deterministic=mode, same_program=equal(first, cached),
                compiled_anew=equal(first, anew), runs=[first, cached, anew],
            )  # fmt: skip


def equal(a: dict[str, Any], b: dict[str, Any]) -> list[bool] | None:
    """Whether the bits before the first and after the last step are equal; None if one of the processes has failed."""
    if "bits" not in a or "bits" not in b:
        return None
    return [x == y for x, y in zip(a["bits"], b["bits"], strict=True)]


def against(run: Run) -> None:
    """``benchmarks.gpu`` in a limited time: all peers of all nets start and compile side by side, then each net's are
    asked in turn, alone. Whoever is late is left out."""
    nets = {"mlp": "float32", "sngan": "tf32", "r3gan": "bfloat16"}
    if run.tiny:
        nets = {"mlp": "float32", "sngan": "float32"}  # r3gan takes minutes to compile for a CPU
    about = {} if run.tiny else gpu.card()
    chosen = {}
    for net, precision in nets.items():
        batch = 4 if run.tiny else gpu.KINDS[net].batch
        settings = gpu.Settings(net, precision, batch, "cpu" if run.tiny else "cuda")
        chosen |= {(settings, name): settings.show() + name for name in forms(settings)}
    with started(run, "benchmarks.gpu", chosen) as ready:
        whole = list(dict.fromkeys(settings for settings, _ in chosen))
        counts = {s: json.loads(gpu.child(s, gpu.COUNT, "cpu")) for s in whole}
        for i, settings in enumerate(whole):
            pool = {name: peer for (of, name), peer in ready.items() if of == settings}
            late = [name for of, name in chosen if of == settings and name not in pool]
            run.say(settings.net, started=list(pool), left_out=late)
            share = run.left / (len(whole) - i)
            part = run._replace(seconds=share, begun=time.monotonic())
            rounds(part, settings, pool, counts[settings], about)


@contextlib.contextmanager
def started(run: Run, module: str, names: dict[Any, str]) -> Iterator[dict[Any, peers.Peer]]:
    """The peers of a module that have compiled and answered once within half of the time; all do so side by side."""
    cores, device = sorted(os.sched_getaffinity(0)), "cpu" if run.tiny else "cuda"
    deadline = time.monotonic() + run.left * (0.9 if run.tiny else 0.5)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        pool = {key: peers.Peer(module, name, cores, folder, device) for key, name in names.items()}
        for peer in pool.values():
            stack.callback(peer.stop)
            peer.begin()
        ready = {}
        for key, peer in pool.items():
            if peer.wait(max(0.1, deadline - time.monotonic())) and peer.answer():
                ready[key] = peer
            else:
                peer.stop()
        yield ready


def forms(settings: gpu.Settings) -> list[str]:
    """Names of the peers: PyTorch's where it is there, of its eager forms the faster; a rehearsal has one of each."""
    import importlib.util

    there = importlib.util.find_spec("torch") is not None
    if settings.device != "cuda":
        return [gpu.OURS, gpu.EAGER][: 1 + there]
    slower = {gpu.EAGER} if settings.net != "mlp" else set()
    names = [name for name in gpu.peers(settings) if name not in slower]
    return [name for name in names if there or not name.startswith("torch")]


def rounds(run: Run, settings: gpu.Settings, pool: dict, counts: dict, about: dict) -> None:
    """Asks the peers in turn while there is time, at least once; says the medians after every round."""
    results: dict[str, list] = {label: [] for label in pool}
    done, took = 0, 0.0
    while results and done < (1 if run.tiny else 5) and (not done or run.left > 1.3 * took):
        start = time.monotonic()
        for label in list(results):
            answer = pool[label].ask()
            if answer is None:
                del results[label]
            else:
                results[label].append(answer)
        done, took = done + 1, time.monotonic() - start
        if gpu.OURS not in results:
            run.say(settings.net, failed="bpgan did not run")
            return
        summary = gpu.summarize(results, settings, counts, about.get("card", ""))
        verdicts, _ = gpu.verdicts(summary)
        run.say(settings.net, rounds=done, summary=summary, verdicts=verdicts)


def in_turn(module: str, kind: str, names: tuple[str, ...]) -> Callable[[Run], None]:
    """Peers of another benchmark, by themselves: how many steps a second each takes, three rounds."""

    def phase(run: Run) -> None:
        chosen = {name: name for name in (names[:1] if run.tiny else names)}
        with started(run, module, chosen) as ready:
            for name in chosen:
                answers = [ready[name].ask() for _ in range(3)] if name in ready else []
                if not answers or None in answers:
                    run.say(kind, name=name, failed="late, or it failed")
                    continue
                rates = [steps / wall for steps, _, wall in filter(None, answers)]
                run.say(kind, name=name, steps_per_s=round(statistics.median(rates), 1))

    return phase


DIGITS = ROOT / "bpgan" / "data" / "mnist10k.npz"


def quality(run: Run) -> None:
    """Trains until the time is up, in pauses, and evaluates what was reached by then."""
    folder, dataset = run.out / "quality", f"--dataset=npz:{arrays_of(DIGITS, run.out)}"
    argv = ["--preset=smoke"] if run.tiny else ["--preset=lite28", "--epochs=40"]
    common = [*argv, dataset, "--tensorboard=false", f"--workdir={folder}", "--sample_every=0"]
    start, seconds = time.monotonic(), run.left - (60 if run.tiny else 45)
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.image_gan", *common],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=max(5.0, min(seconds, 120.0)))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # it saves, and exits with 75
        said, _ = process.communicate(timeout=max(5.0, run.left - 20))
    trained = round(time.monotonic() - start, 1)
    run.say("quality", seconds=trained, code=process.returncode, said=said.strip()[-300:])
    if process.returncode not in (0, 75):
        return
    n = 100 if run.tiny else 10_000
    done = subprocess.run(
        [
            sys.executable, "-m", "experiments.evaluate", f"--run={folder}", "--metrics=fd,prdc", f"--n={n}",
            f"--workdir={run.out / 'evaluation'}",
        ],
        capture_output=True, text=True, timeout=max(1.0, run.left),
    )  # fmt: skip
    file = run.out / "evaluation" / "metrics.json"
    rows = json.loads(file.read_text()) if file.is_file() else []
    keys = ("metric", "value", "real", "untrained", "step")
    run.say(
        "quality", code=done.returncode, rows=[{k: row.get(k) for k in keys} for row in rows],
        said="" if rows else (done.stdout + done.stderr).strip()[-300:],
    )  # fmt: skip


def arrays_of(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """The digits of the package as a file with the names that ``npz:FILE`` asks for."""
    import numpy as np

    with np.load(path) as file:
        names = {"x", "y"} if "x" in file else {"x_train", "y_train", "x_test", "y_test"}
        if names <= set(file):
            return path
    from bpgan import data

    target, parts = folder / "digits.npz", {}
    for split in ("train", "test"):
        parts[f"x_{split}"], parts[f"y_{split}"] = data.load("mnist10k", split).arrays()
    np.savez(target, **parts)
    return target


def device(run: Run) -> None:
    """The tests of whatever device is here; what failed, by name."""
    import importlib.util

    chosen = ["-k", "lax or features"] if run.tiny else []
    if importlib.util.find_spec("xdist") and not run.tiny:
        chosen = ["-n", "4"]
    file = run.out / "device.txt"
    with file.open("w") as log:
        command = [sys.executable, "-m", "pytest", "-v", "--tb=line", "tests/accelerator", *chosen]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = process.wait(max(1.0, run.left - 3))
        except subprocess.TimeoutExpired:
            process.kill()
            code = "no time left"
    lines = file.read_text(errors="replace").splitlines()
    passed = sum("PASSED " in line or " PASSED" in line for line in lines)
    bad = [line[:160] for line in lines if "FAILED " in line or "ERROR " in line]
    run.say("device", code=code, passed=passed, bad=bad)


PHASES: dict[str, Callable[[Run], None]] = {
    "machine": machine,
    "device": device,
    "bits": bits,
    "peers": against,
    "private": in_turn("benchmarks.private", "private", PRIVATE),
    "sweep": in_turn("benchmarks.sweep", "sweep", SWEEPS),
    "quality": quality,
}


# --- Tables -------------------------------------------------------------------------------------------------------


def tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of Markdown that go into ``RESULTS.md``, of the rows of a results file."""
    told = [row for row in rows if not row.get("failed") or "name" in row or "net" in row]
    by_phase: dict[str, list] = collections.defaultdict(list)
    for row in told:
        by_phase[row["phase"]].append(row)
    for row in by_phase["about"][-1:]:
        card = ", ".join(str(c["name"]) for c in row.get("cards", [])) or "no card"
        driver = ", ".join(str(c["driver_version"]) for c in row.get("cards", []))
        versions = ", ".join(f"{k} {row[k]}" for k in ("python", "jax", "torch") if k in row)
        rehearsed = "; a rehearsal: no figure here means anything" * bool(row.get("rehearsal"))
        yield f"{card}, driver {driver or 'none'}, {versions}, bpgan {row['commit']}{rehearsed}."
    for row in by_phase["device"]:
        yield f"\n`tests/accelerator`: {row['passed']} passed, {len(row['bad'])} failed."
    yield from table(
        ("bits", "deterministic", "from the cache, other calls", "compiled anew"),
        [
            (
                row["name"],
                row["deterministic"],
                agreement(row, "same_program"),
                agreement(row, "compiled_anew"),
            )
            for row in by_phase["bits"]
        ],
    )
    for net in ("mlp", "sngan", "r3gan"):
        summaries = [row["summary"] for row in by_phase[net] if "summary" in row]
        for summary in summaries[-1:]:
            head = f"{net}, {summary['precision']}, batch {summary['batch']}"
            cells = [
                (name, f"{r['steps_per_s']:.4g}", f"{r['ratio']:.2f}x", f"{r['mfu']:.1%}" if r["mfu"] else "")
                for name, r in summary["rows"].items()
            ]  # fmt: skip
            yield from table((head, "steps/s", "bpgan is", "MFU"), cells)
    for kind in ("private", "sweep"):
        yield from table(
            (kind, "steps/s"),
            [(r["name"], str(r.get("steps_per_s", r.get("failed")))) for r in by_phase[kind]],
        )
    numbers = [each for row in by_phase["quality"] for each in row.get("rows", [])]
    yield from table(
        ("lite28 on digits", "step", "value", "real", "untrained"),
        [
            tuple(str(each[k]) for k in ("metric", "step", "value", "real", "untrained"))
            for each in numbers
        ],
    )


def agreement(row: dict[str, Any], key: str) -> str:
    if not row.get(key):
        return "not measured"
    return "equal" if all(row[key]) else "differ"


def table(head: tuple[str, ...], cells: list[tuple[str, ...]]) -> Iterator[str]:
    """A table of Markdown; nothing without cells."""
    if cells:
        yield ""
        for line in (head, ("---",) * len(head), *cells):
            yield (
                "| "
                + " | ".join(word.replace("|", "/").replace("\n", " ")[:80] for word in line)
                + " |"
            )


# --- The whole ----------------------------------------------------------------------------------------------------


def commit() -> str:
    """The commit of this checkout, or a hash of the package's files where git knows none."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if found.returncode == 0:
        return found.stdout.strip()
    digest = hashlib.sha256()
    for path in sorted(ROOT.glob("bpgan/**/*.py")):
        digest.update(path.read_bytes())
    return f"no commit is known; the files of bpgan have SHA-256 {digest.hexdigest()[:12]}"


def about(tiny: bool) -> dict[str, Any]:
    """The card, its driver and clocks, the versions and the commit."""
    from importlib import metadata, util

    query = "name,driver_version,clocks.sm,clocks.max.sm,power.limit"
    row: dict[str, Any] = {"commit": commit(), **peers.machine(), "rehearsal": tiny}
    for package in ("optax", "orbax-checkpoint", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            row[package] = metadata.version(package)
    for package in ("tensorboardX", "array_record", "grain", "tensorflow_datasets"):
        row[package] = util.find_spec(package) is not None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        row["cards"] = [
            dict(zip(query.split(","), line.split(", "), strict=False))
            for line in lines.splitlines()
        ]
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("phases", nargs="*", metavar="PHASE", help="all if none is named")
    parser.add_argument(
        "--out", default=str(ROOT / "runs" / "gpu_run"), help="folder of the results"
    )
    parser.add_argument("--seconds", type=float, default=540.0, help="of everything together")
    parser.add_argument("--rehearse", action="store_true", help="at tiny sizes on a CPU")
    parser.add_argument("--table", action="store_true", help="print the tables of what is in DIR")
    parser.add_argument("--phase", help=argparse.SUPPRESS)  # one, in this process
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)  # when it was started
    given = parser.parse_args()
    if unknown := [name for name in given.phases if name not in PHASES]:
        parser.error(f"{unknown[0]}: must be one of {', '.join(PHASES)}")
    begun, out = given.begun or time.monotonic(), pathlib.Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    if given.table:
        lines = (out / "results.jsonl").read_text().splitlines()
        print("\n".join(tables([json.loads(line) for line in lines])))
        return 0
    if given.phase:
        try:
            PHASES[given.phase](Run(out, given.rehearse, given.seconds, begun))
        except subprocess.TimeoutExpired:
            return LATE
        return 0
    if given.rehearse:
        os.environ["JAX_PLATFORMS"] = "cpu"
    whole = Run(out, given.rehearse, given.seconds, begun)
    whole.say("about", **about(given.rehearse))
    due, chosen = 0.0, given.phases or list(PHASES)
    scale = (given.seconds - 5) / sum(LIMITS[name] for name in chosen)
    for name in chosen:
        due += REHEARSED if given.rehearse else scale * LIMITS[name]
        limit = min(due, given.seconds - 5) - (given.seconds - whole.left)
        if limit < 10:
            whole.say(name, failed="no time left")
            continue
        print(f"== {name}: at most {limit:.0f} s", file=sys.stderr)
        command = [
            sys.executable,
            "-m",
            "benchmarks.gpu_run",
            f"--phase={name}",
            f"--out={out}",
            f"--seconds={limit}",
            f"--begun={time.monotonic()}",
        ]
        with subprocess.Popen(
            command + ["--rehearse"] * given.rehearse, start_new_session=True
        ) as child:
            try:
                code = child.wait(limit + 4)
            except subprocess.TimeoutExpired:
                code = "none: it was ended"
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # whatever it has left running
        if code == LATE:
            whole.say(name, failed="no time left")
        elif code:
            whole.say(name, failed=f"exit code {code}")
    whole.say("done", seconds=round(time.monotonic() - begun, 1))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print("@" + json.dumps(CHILDREN[sys.argv[2]](*sys.argv[3:])))
        sys.exit(0)
    sys.exit(main())
