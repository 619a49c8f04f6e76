"""bpgan/cli/__init__.py: fields to flags, precedence, messages, exit codes."""

import ast
import copy
import dataclasses
import importlib
import os
import pathlib
import pickle
import re
import shlex
import sys
import types

import jax
import numpy as np
import pytest

import bpgan.runtime
import bpgan.runtime.run as loop
from bpgan import cli
from bpgan.cli import ended, experiments
from bpgan.cli.help import value_rows
from bpgan.files import Damaged
from bpgan.types import Algorithm, Source, UserError

ROOT = pathlib.Path(__file__).parent.parent
LIBRARY = sorted(
    path
    for path in ROOT.glob("bpgan/**/*.py")
    if path.relative_to(ROOT / "bpgan").parts[0] not in ("cli", "launcher")
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    lr: float = cli.field(0.1, "learning rate", low=0, exclusive_low=True, sweepable=True)
    decay: float = cli.field(0.9, "EMA decay", low=0, high=1)
    momentum: float = cli.field(0.0, "any number")
    layers: int = cli.field(2, "hidden layers", low=1, high=9)
    loss: str = cli.field("hinge", "adversarial loss", choices=("hinge", "logistic"))
    csv: str = cli.field("", "a file")
    ema: bool = cli.field(False, "average the parameters")
    epochs: float = cli.field(20.0)
    batch_size: int = 50

    def idle(self):
        return {"layers": "loss"} if self.loss == "logistic" else {}


PRESETS = {"smoke": dict(steps=4, layers=1), "article": dict(epochs=1000, lr=0.5, ema=True)}


def resolve(*argv):
    return cli.resolve(Config, PRESETS, argv)


def message(*argv):
    with pytest.raises(UserError) as caught:
        resolve(*argv)
    assert "\n" not in str(caught.value)
    return cli.message_of(caught.value)


def test_precedence_is_default_preset_explicit_whatever_the_order():
    assert resolve() == Config()
    preset = resolve("--preset=article")
    assert (preset.lr, preset.epochs, preset.ema, preset.layers) == (0.5, 1000.0, True, 2)
    assert type(preset.epochs) is float
    for argv in (["--preset=article", "--lr=0.2"], ["--lr=0.2", "--preset=article"]):
        cfg = resolve(*argv)
        assert (cfg.lr, cfg.epochs) == (0.2, 1000.0)
    # An explicit flag that repeats the default still beats the preset.
    assert resolve("--preset=article", "--lr=0.1", "--noema").lr == 0.1
    assert resolve("--preset=article", "--lr=0.1", "--noema").ema is False


@pytest.mark.parametrize(
    "argv, idle",
    [
        (["--loss=logistic", "--layers=3"], True),
        (["--preset=smoke", "--loss=logistic", "--layers=2"], True),
        (["--preset=smoke", "--loss=logistic"], False),
        (["--preset=smoke", "--loss=logistic", "--layers=1"], False),
        (["--loss=hinge", "--layers=3"], False),
    ],
)
def test_what_changes_nothing_is_named_where_it_is_asked_for(argv, idle):
    found = cli.without_effect(Config, PRESETS, argv)
    assert found == ({"layers": "has no effect with --loss=logistic"} if idle else {})


def test_epochs_that_are_asked_for_beat_the_steps_of_a_preset():
    assert resolve("--preset=smoke").steps == 4
    assert resolve("--preset=smoke", "--epochs=3").steps == 0
    assert resolve("--preset=smoke", "--epochs=3", "--steps=9").steps == 9


def test_values_have_the_type_of_their_field():
    cfg = resolve("--lr=3", "--layers", "4", "--ema", "--csv=a,b", "--momentum", "-1e-3")
    assert (cfg.lr, cfg.layers, cfg.ema, cfg.csv) == (3.0, 4, True, "a,b")
    assert cfg.momentum == -1e-3
    assert (type(cfg.lr), type(cfg.layers)) == (float, int)
    assert resolve("--tensorboard=false").tensorboard is False
    assert resolve("--lr=1", "--lr=2").lr == 2.0


def test_the_order_of_resolutions_does_not_matter():
    resolve("--lr=7")
    assert resolve().lr == 0.1


@pytest.mark.parametrize(
    "argument, expected",
    [
        ("--lr=-1", "--lr=-1: must be a number > 0"),
        ("--lr=0", "--lr=0: must be a number > 0"),
        ("--lr=nan", "--lr=nan: must be a number > 0"),
        ("--lr=inf", "--lr=inf: must be a number > 0"),
        ("--lr=fast", "--lr=fast: must be a number > 0"),
        ("--momentum=nan", "--momentum=nan: must be a number that is finite"),
        ("--momentum=-inf", "--momentum=-inf: must be a number that is finite"),
        ("--decay=1.01", "--decay=1.01: must be a number in [0, 1]"),
        ("--layers=0", "--layers=0: must be a whole number in [1, 9]"),
        ("--layers=10", "--layers=10: must be a whole number in [1, 9]"),
        ("--layers=2.5", "--layers=2.5: must be a whole number in [1, 9]"),
        ("--layers=", "--layers=: must be a whole number in [1, 9]"),
        ("--seed=-1", "--seed=-1: must be a whole number in [0, 4294967295]"),
        ("--seed=4294967296", "--seed=4294967296: must be a whole number in [0, 4294967295]"),
        ("--steps=-5", "--steps=-5: must be a whole number in [0, 2147483647]"),
        ("--batch_size=0", "--batch_size=0: must be a whole number >= 1"),
        ("--epochs=0", "--epochs=0: must be a number > 0"),
        (
            "--loss=logistik",
            "--loss=logistik: must be one of hinge, logistic; did you mean logistic?",
        ),
        ("--parallel=mesh", "--parallel=mesh: must be one of jit, pmap"),
        ("--ema=maybe", "--ema=maybe: must be true or false"),
        ("--noema=true", "--noema=true does not take an argument"),
        (
            "--log_every=5x",
            "--log_every=5x: must be steps (500), epochs (2.5ep) or 0 for never",
        ),
        ("--lr", "--lr: needs a value"),
        ("--lrr=1", "--lrr: unknown flag; did you mean --lr?"),
        ("--epoch=1", "--epoch: unknown flag; did you mean --epochs?"),
        ("--batch-size=1", "--batch-size: unknown flag; did you mean --batch_size?"),
        ("--zzzzzz=1", "--zzzzzz: unknown flag; --help lists the flags"),
        ("--preset=smok", "--preset=smok: must be one of smoke, article; did you mean smoke?"),
        ("epochs=5", "unexpected argument 'epochs=5'; flags are written --name=value"),
    ],
)
def test_messages(argument, expected):
    assert message(argument) == expected


def test_a_flag_does_not_swallow_the_next_one():
    assert message("--csv", "--epochs=5") == "--csv=--epochs=5: needs a value"
    assert message("--log_every", "--ema").startswith("--log_every=--ema: must be steps (500)")
    assert message("--ema", "false").startswith("unexpected argument 'false'")


def test_a_preset_is_held_to_the_same_bounds_unless_a_flag_overrides_it():
    presets = {"bad": dict(lr=-1)}
    with pytest.raises(
        UserError, match=r"^lr=-1: must be a number > 0 \(the value is that of the preset"
    ):
        cli.resolve(Config, presets, ["--preset=bad"])
    assert cli.resolve(Config, presets, ["--preset=bad", "--lr=1"]).lr == 1.0
    with pytest.raises(TypeError, match="no field 'speed'"):
        cli.resolve(Config, {"bad": dict(speed=1)}, ["--preset=bad"])


def test_bounds_are_closed_and_open_where_they_say_so():
    cfg = resolve("--decay=0", "--layers=9", "--seed=4294967295", "--lr=1e-300")
    assert (cfg.decay, cfg.layers, cfg.seed, cfg.lr) == (0.0, 9, 2**32 - 1, 1e-300)
    assert resolve("--decay=1").decay == 1.0


def test_flagfile_stands_for_the_flags_in_it(tmp_path):
    file = tmp_path / "flags"
    file.write_text("# a comment\n--lr=0.25\n--ema\n")
    assert resolve(f"--flagfile={file}").lr == 0.25
    assert resolve(f"--flagfile={file}", "--lr=1").lr == 1.0
    assert resolve("--lr=1", f"--flagfile={file}").lr == 0.25
    assert message(f"--flagfile={file}x").startswith("--flagfile: unable to open flagfile: ")
    file.write_text("--lr=-1\n")
    assert message(f"--flagfile={file}") == "--lr=-1: must be a number > 0"


def test_annotations_may_be_text():
    """As all of a module are after ``from __future__ import annotations``."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(cli.RunConfig):
        lr: "float" = cli.field(1.0)
        penalty: "cli.Parsed[OnlyTypeCheckersKnowThis]" = cli.field("a", parse=str.upper)  # noqa: F821

    specs = cli.flags_of(Own)
    assert (specs["lr"].type, specs["penalty"].type, specs["seed"].type) == (float, str, int)
    assert cli.resolve(Own, {}, ["--penalty=b"]).penalty.value == "B"


def test_redeclared_fields_inherit_help_bounds_and_restart_safety():
    flags = cli.flags_of(Config)
    assert flags["epochs"].default == 20.0
    assert flags["epochs"].help == cli.flags_of(cli.RunConfig)["epochs"].help != ""
    assert "epochs" in cli.restart_safe(Config)
    assert flags["batch_size"].low == 1
    assert cli.restart_safe(Config) == {
        "epochs", "steps", "log_every", "sample_every", "checkpoint_every", "parallel",
        "workdir", "tensorboard", "log_to", "keep", "feed", "on_anomaly", "pause_at", "name",
    }  # fmt: skip


def test_a_config_that_cannot_be_flags_is_a_type_error():
    def config(**annotations):
        fields = [(k, t, dataclasses.field(default=None)) for k, t in annotations.items()]
        return dataclasses.make_dataclass(
            "Bad", fields, bases=(cli.RunConfig,), frozen=True, kw_only=True
        )

    with pytest.raises(TypeError, match="taken by another flag"):
        cli.flags_of(config(preset=str))
    with pytest.raises(TypeError, match=r"must be a bool, int, float, str or Parsed\[...\]"):
        cli.flags_of(config(widths=tuple))


@pytest.mark.parametrize(
    "text, steps",
    [("0", 0), ("500", 500), ("0ep", 0), ("1ep", 70), ("2.5ep", 176), (".01ep", 1), ("10.ep", 703)],
)
def test_durations(text, steps):
    found = cli.Duration.parse(text)
    assert found.steps(70.3125) == steps and bool(found) == bool(steps)  # 9000 examples by 128


@pytest.mark.parametrize("text", ["", "ep", "-1", "1.5", "1 ep", "1e3", "5epochs", "nanep", "١ep"])
def test_durations_that_are_none(text):
    with pytest.raises(ValueError, match="must be steps"):
        cli.Duration.parse(text)


class Terms:
    """What a grammar of the tests means; without a pickle, and equal to nothing else."""

    def __init__(self, text):
        self.names, self.unpicklable = text.split("+"), lambda: None
        if "r9" in self.names:
            raise ValueError("must be r1 or r2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Penalized(Config):
    penalty: cli.Parsed[Terms] = cli.field("r1", "penalty", parse=lambda text: Terms(text))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Redeclared(Penalized):
    penalty: cli.Parsed["Terms"] = cli.field("r1+r2")


def test_a_text_with_a_grammar_is_read_once_wherever_the_config_comes_from():
    made = Penalized(penalty="r1+r2")
    asked = cli.resolve(Penalized, {"a": dict(penalty="r1+r2")}, ["--preset=a"])
    given = cli.resolve(Penalized, {}, ["--penalty=r1+r2"])
    for cfg in (made, asked, given, Redeclared(), dataclasses.replace(made, lr=0.5)):
        assert cfg.penalty == "r1+r2" and cfg.penalty.value.names == ["r1", "r2"]
    assert made == asked and hash(made) == hash(asked)
    again = dataclasses.replace(made, lr=0.5)
    assert again.penalty.value is made.penalty.value  # what is not changed is not read again
    assert dataclasses.replace(made, penalty="r2").penalty.value.names == ["r2"]
    other = Config(log_every=made.checkpoint_every)
    assert other.log_every.value is made.checkpoint_every.value  # of the same grammar
    with pytest.raises(UserError, match="^keep=r1: must be "):
        Penalized(keep=Penalized().penalty)  # of another
    tracer = object()
    assert Penalized(lr=tracer).lr is tracer


def test_a_text_with_a_grammar_is_text_to_everybody_else():
    cfg = Penalized(penalty="r2")
    assert type(dataclasses.asdict(cfg)["penalty"]) is str
    assert cli.run_name(cfg, {}) == "default_penalty=r2"
    for copied in (pickle.loads(pickle.dumps(cfg)), copy.copy(cfg), copy.deepcopy(cfg)):
        assert copied == cfg and copied.penalty.value.names == ["r2"]


def test_what_a_grammar_refuses_is_refused_in_python_and_on_a_command_line():
    for make in (
        lambda text: Penalized(penalty=text),
        lambda text: dataclasses.replace(Penalized(), penalty=text),
        lambda text: cli.resolve(Penalized, {}, [f"--penalty={text}"]),
    ):
        with pytest.raises(UserError) as caught:
            make("r1+r9")
        assert cli.message_of(caught.value) == "--penalty=r1+r9: must be r1 or r2"
    with pytest.raises(UserError, match="^penalty=3: must be text$"):
        Penalized(penalty=3)
    bad = dataclasses.make_dataclass(
        "Bad", [("penalty", cli.Parsed[Terms], dataclasses.field(default=""))], bases=(cli.Config,),
        frozen=True, kw_only=True,
    )  # fmt: skip
    with pytest.raises(TypeError, match="penalty: needs a parse=function"):
        cli.flags_of(bad)


# Running: `fit` is replaced, so these tests see exactly what the loop is asked for.


class Anomaly(Exception):
    pass


class Lost(Exception):
    pass


@pytest.fixture
def fit(monkeypatch):
    """A stand-in for the training loop that records how it was called."""
    record = types.SimpleNamespace(error=None, status="done", kwargs=None, setup=None)

    def fake(algorithm, source, spec, plan, mode):
        kwargs = spec._asdict() | plan._asdict()
        record.kwargs = dict(kwargs, algorithm=algorithm, source=source, mode=mode)
        if record.error:
            raise record.error
        record.evaluated = kwargs["evaluate"]("state")
        return types.SimpleNamespace(
            status=record.status, step=kwargs["steps"], metrics={}, evaluated=record.evaluated
        )

    train = types.SimpleNamespace(
        fit=fake, Anomaly=Anomaly, Lost=Lost, Plan=loop.Plan, RunSpec=loop.RunSpec
    )
    distributed = types.SimpleNamespace(
        find_devices=lambda: None,
        setup=lambda **kwargs: setattr(record, "setup", kwargs),
        is_lead=lambda: True,
    )
    monkeypatch.setattr(bpgan.runtime, "train", train, raising=False)
    monkeypatch.setattr(bpgan.runtime, "distributed", distributed, raising=False)
    return record


def build(cfg, axis_name=None):
    source = Source(
        {}, lambda data, step: {"x": np.zeros((cfg.batch_size, 2))}, 9000, cfg.batch_size, "zeros"
    )
    algorithm = Algorithm(init=axis_name, step=cfg)  # type: ignore[arg-type]
    return cli.Experiment(algorithm, source, lambda state: {state + "/fid": 12.3456789}, "A title")


def run(*argv, record=ended.ignore):
    return cli.run(Config, build, PRESETS, argv, record)


def test_run_hands_the_loop_steps_not_epochs(fit):
    argv = ["--batch_size=128", "--log_every=2ep", "--sample_every=0", "--parallel=pmap"]
    assert run(*argv) == 0
    call = fit.kwargs
    assert call["steps"] == 1406  # 20 * 9000 / 128 = 1406.25
    assert (call["log_every"], call["sample_every"], call["checkpoint_every"]) == (141, 0, 703)
    assert (call["name"], call["mode"], call["seed"]) == (__file__, "pmap", 0)
    assert str(call["workdir"]) == "runs/test_cli/default_batch_size=128"
    assert call["algorithm"].init == "batch"
    assert call["config"] == dataclasses.asdict(resolve(*argv))
    assert call["restart_safe"] == cli.restart_safe(Config)
    assert fit.setup == {
        "precision": "float32",
        "matmul_precision": "default",
        "deterministic": True,
    }
    argv = ["--steps=7", "--workdir=a/b", "--precision=float64", "--matmul_precision=high"]
    assert run(*argv) == 0
    assert (fit.kwargs["steps"], str(fit.kwargs["workdir"])) == (7, "a/b")
    assert fit.setup == {"precision": "float64", "matmul_precision": "high", "deterministic": True}
    assert run("--deterministic=false") == 0 and fit.setup["deterministic"] is False


def test_an_experiment_with_the_build_of_another_has_its_own_name(fit, monkeypatch):
    monkeypatch.setattr(build, "__module__", "experiments.mnist_gan")
    assert run() == 0 and fit.kwargs["name"] == __file__


@pytest.mark.parametrize("name", experiments.names())
def test_the_command_of_a_run_repeats_it(name):
    """However it was begun: here by pytest, whose own command is another."""
    module = importlib.import_module(f"experiments.{name}")
    if not issubclass(module.Config, cli.RunConfig):
        return
    for preset in ("", *module.PRESETS):
        given = ["--seed=7", *[f"--preset={preset}"] * bool(preset)]
        cfg = cli.resolve(module.Config, module.PRESETS, given)
        for chosen in (cfg, dataclasses.replace(cfg, pause_at=1 / 3, tensorboard=False)):
            python, option, what, *flags = shlex.split(cli.command_of(chosen, "a folder/'run'"))
            assert (python, option, what) == ("python", "-m", f"experiments.{name}")
            again = cli.resolve(module.Config, module.PRESETS, flags)
            assert again == dataclasses.replace(chosen, workdir="a folder/'run'")


def test_so_does_that_of_several_processes_or_of_a_script(fit, monkeypatch):
    from experiments import mnist_gan

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    command = cli.command_of(mnist_gan.Config(), "here")
    assert command == "python -m bpgan.launcher --experiment=mnist_gan --processes=2 --workdir=here"
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    started = f"python -m bpgan.cli {__file__} --lr=0.2 --workdir=x"  # by another program
    assert cli.command_of(Config(lr=0.2), "x") == started
    module = sys.modules[__name__]
    monkeypatch.setattr(module, "__spec__", None)
    assert cli.command_of(Config(), "x") == f"python {__file__} --workdir=x"
    monkeypatch.setattr(module, "__spec__", types.SimpleNamespace(name="my_package.my_gan"))
    assert cli.command_of(Config(), "x") == "python -m bpgan.cli my_package.my_gan --workdir=x"
    monkeypatch.setattr(module, "__name__", "__main__")
    assert cli.command_of(Config(), "x") == "python -m my_package.my_gan --workdir=x"
    monkeypatch.setattr(module, "__spec__", None)
    monkeypatch.setattr(module, "__file__", None)
    assert cli.command_of(Config(), "x") == ""  # python -c, a cell of a notebook
    assert run("--workdir=a") == 0 and fit.kwargs["command"] == ""


def test_a_run_warns_of_flags_without_effect(fit, capsys):
    assert run("--loss=logistic", "--layers=3") == 0 and fit.kwargs["config"]["layers"] == 3
    said = capsys.readouterr().out
    assert "warning: --layers=3 has no effect with --loss=logistic\n" in said
    assert run("--loss=logistic") == 0 and "warning" not in capsys.readouterr().out


def test_keep_by_what_only_evaluations_find_needs_them(fit, capsys):
    argv = ["--keep=3,best=1,min:eval/FD"]
    assert run(*argv) == 2 and fit.kwargs is None
    said = "--keep=3,best=1,min:eval/FD: eval/FD is found by --eval_every, which is 0; must be > 0"
    assert capsys.readouterr().err == f"error: {said}\n"


def test_known_values_stand_beside_measured_ones():
    found = {"modes": 8.0, "modes/known": 8.0, "kl": 0.0012345678, "b/known": 1.0, "best/kl": 2.0}
    rows = value_rows(found)
    assert [name for name, _ in rows] == ["modes", "kl", "b/known", "best/kl"]
    assert rows[0][1].split() == ["8", "known", "8"] and rows[1][1] == "0.00123457"


def test_what_evaluate_finds_is_shown_and_kept(fit, capsys):
    assert run("--preset=smoke", "--lr=0.5") == 0
    assert fit.evaluated == {"state/fid": 12.3456789}
    first, title, values = capsys.readouterr().out.splitlines()
    assert first == "test_cli --lr=0.5 --layers=1 --steps=4"
    assert title == "A title"
    assert values.split() == ["state/fid", "12.3457"]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_command_line_writes_flags(path):
    """Elsewhere an argument is named bare, or in backquotes; docstrings and the arguments of other programs aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    parts = {part for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    texts = {node for node in nodes if isinstance(node, ast.Constant) and " " in str(node.value)}
    texts |= {part for part in parts if isinstance(part, ast.Constant)}
    texts -= {node.value for node in nodes if isinstance(node, ast.Expr)}
    flag = re.compile(r"(?<![\w\"|-])--([a-z]|$)")
    found = sorted(node.lineno for node in texts if flag.search(str(node.value)))
    assert not found, f"lines {found}: write `name=value`, which cli.message_of makes a flag"


@pytest.mark.parametrize(
    "error, status, code, said",
    [
        (None, "done", 0, ""),
        (None, "interrupted", 75, ""),
        (UserError("x:\nis taken"), "", 2, "error: x: is taken\n"),
        (
            UserError("must divide `batch_size=7`; see `n`", argument="d", value=3),
            "",
            2,
            "error: --d=3: must divide --batch_size=7; see --n\n",
        ),
        (UserError("needs `pip install x`"), "", 2, "error: needs `pip install x`\n"),
        (Anomaly("not finite at step 7: d/loss"), "", 3, "error: not finite at step 7: d/loss\n"),
        (KeyboardInterrupt(), "", 130, ""),
    ],
)
def test_exit_codes(fit, capsys, error, status, code, said):
    """Which are recorded, each with its cause."""
    fit.error, fit.status, recorded = error, status, []
    assert run(record=lambda *how: recorded.append(how)) == code
    assert capsys.readouterr().err == said
    ((workdir, its_code, cause),) = recorded
    assert (workdir, its_code) == ("runs/test_cli/default", code)
    assert str(cause or "") == str(error or "")


def test_the_unexpected_is_not_swallowed(fit):
    fit.error, recorded = ZeroDivisionError("by 0"), []
    with pytest.raises(ZeroDivisionError):
        run(record=lambda *how: recorded.append(how))
    assert [(code, str(cause)) for _, code, cause in recorded] == [(1, "ZeroDivisionError: by 0")]


def test_a_refusal_is_recorded_with_what_is_at_fault(fit, tmp_path, monkeypatch):
    """Only where a launcher asks for it, and only by the process that it started."""
    fit.error = UserError("is too\nlarge", argument="ema", value=True, beside=["lr"])
    argv = [f"--workdir={tmp_path / 'a'}"]
    monkeypatch.delenv(ended.ATTEMPT, raising=False)
    assert run(*argv, record=ended.recorder()) == 2 and ended.read(tmp_path / "a") is None
    monkeypatch.setenv(ended.ATTEMPT, "first")
    record = ended.recorder()
    assert ended.ATTEMPT not in os.environ
    assert run(*argv, record=record) == 2
    found = ended.read(tmp_path / "a")
    assert found == ended.Ended(
        attempt="first", code=2, reason="is too large", argument="ema", value="true", beside=["lr"]
    )
    assert cli.message_of(found.error) == "--ema=true: is too large"
    fit.error = Damaged(tmp_path / "x", "is damaged")  # of no argument: all that it says
    assert run(*argv, record=record) == 2
    assert ended.read(tmp_path / "a").reason == f"{tmp_path / 'x'}: is damaged"
    for damage in (b"", b"{}", b"[1]", b"\0" * 9, ended.path_of(tmp_path / "a").read_bytes()[:-9]):
        ended.path_of(tmp_path / "a").write_bytes(damage)
        assert ended.read(tmp_path / "a") is None
    ended.path_of(tmp_path / "a").unlink()
    ended.path_of(tmp_path / "a").mkdir()
    assert run(*argv, record=record) == 2 and ended.read(tmp_path / "a") is None


def test_a_command_that_is_refused_leaves_no_empty_directory(fit, tmp_path):
    def refuse(cfg, axis_name=None):
        pathlib.Path(cfg.workdir).mkdir(parents=True, exist_ok=True)
        raise UserError("is refused")

    (tmp_path / "ours").mkdir()
    argv = [f"--workdir={tmp_path}/ours/a/b"]
    assert cli.run(Config, refuse, PRESETS, argv) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]  # was there before
    assert not list((tmp_path / "ours").iterdir())
    (tmp_path / "ours" / "a").mkdir()
    (tmp_path / "ours" / "a" / "thesis").touch()
    assert cli.run(Config, refuse, PRESETS, argv) == 2
    assert [path.name for path in (tmp_path / "ours" / "a").iterdir()] == ["thesis"]


@pytest.mark.parametrize(
    "word, names, meant",
    [
        ("wgan", "minimax began hinge wasserstein", ""),
        ("wgan", "began rpgan wgan_gp", "wgan_gp"),
        ("size", "seed batch_size side", "batch_size"),
        ("batchsize", "batch_size", "batch_size"),
        ("hinges", "hinge", "hinge"),
        ("nonsat", "saturating nonsaturating", "nonsaturating"),
        ("epohcs", "epochs steps", "epochs"),
        ("wieght", "height weight", "weight"),
        ("zz", "fuzzy", ""),
        ("", "a b", ""),
        ("x" * 3000, "a b", ""),
    ],
)
def test_only_what_is_near_is_meant(word, names, meant):
    hint = cli.did_you_mean(word, names.split())
    assert hint == (f"; did you mean {meant}?" if meant else "")


def test_numbers_without_end_are_refused_in_one_line(fit, capsys):
    for flag in (
        "--epochs=1e308",
        "--epochs=1e300",
        f"--log_every={'9' * 5000}",
        f"--log_every={'9' * 400}ep",
        f"--steps={'9' * 5000}",
        f"--seed={'9' * 5000}",
        f"--lr={'9' * 5000}",
    ):
        assert run(flag) == 2 and fit.kwargs is None
        assert capsys.readouterr().err.count("\n") == 1
    assert cli.Duration.parse("2147483647ep").steps(70.0) == 2**31 - 1


@pytest.mark.parametrize("letter", ["x", "ä", "漢", "𝄞"])
def test_a_flag_of_any_length_makes_a_file_name(letter):
    name = cli.run_name(resolve(f"--csv={letter * 3000}"), PRESETS)
    assert len(name.encode()) <= 100
    assert name != cli.run_name(resolve(f"--csv={letter * 2999}"), PRESETS)


def test_a_bad_flag_stops_before_anything_starts(fit, capsys):
    assert run("--lr=-1") == 2
    assert fit.setup is None and fit.kwargs is None
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "error: --lr=-1: must be a number > 0\n")


def test_main_exits_with_the_code(fit, monkeypatch):
    fit.status = "interrupted"
    monkeypatch.setattr(sys, "argv", ["x", "--steps=3"])
    with pytest.raises(SystemExit) as caught:
        cli.main(Config, build, PRESETS)
    assert caught.value.code == 75
    assert fit.kwargs["steps"] == 3


@pytest.mark.parametrize("flag", ["--help", "-h", "-help", "--helpfull"])
def test_help_shows_the_docstring_then_own_flags_then_general_ones(fit, capsys, flag):
    assert run("--lr=-1", flag) == 0  # help wins over mistakes
    out, err = capsys.readouterr()
    assert err == "" and fit.kwargs is None
    assert out.startswith("bpgan/cli/__init__.py: fields to flags")
    own, general = out.split("Flags of every experiment:")
    for name in ("lr", "decay", "layers", "loss", "csv", "ema", "preset"):
        assert f"  --{name}=" in own and f"  --{name}=" not in general
    for name in cli.RunConfig.__dataclass_fields__:
        assert f"  --{name}=" in general
    assert "--lr=0.1 " in own and "learning rate (> 0)" in own
    assert "adversarial loss (one of hinge, logistic)" in own
    assert "--epochs=20.0 " in general and "--batch_size=50 " in general
    assert "smoke: --steps=4 --layers=1" in own
    assert "logtostderr" not in out and "undefok" not in out  # absl's own
    assert max(map(len, out.splitlines())) <= 100


# Names --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named(cli.RunConfig):
    dataset: str = cli.field("digits", locates_data=True)
    lr: float = cli.field(1.0)


def test_a_default_name_claims_no_preset_that_nobody_asked_for():
    """Near another one or not; and says the one that was asked for even if it changes nothing that decides."""
    presets = {"fast": {"lr": 2.0}, "long": {"epochs": 9.0}}

    def named(*argv):
        cfg = cli.resolve(Named, presets, argv)
        return cli.run_name(cfg, presets, cli.preset_of(Named, presets, argv))

    assert named() == "default" and named("--lr=2") == "default_lr=2.0"
    assert named("--preset=fast") == "fast" and named("--preset=long") == "long"
    assert named("--preset=fast", "--lr=3") == "fast_lr=3.0"
    assert named("--preset=fast", "--lr=1") == "fast_lr=1.0"
    assert named("--preset=fast", "--lr=3", "--name=mine") == "mine"


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "a b", "x" * 101, "a\nb"])
def test_a_name_is_that_of_a_folder(name):
    with pytest.raises(UserError, match="must be at most 100 letters"):
        cli.resolve(Named, {}, [f"--name={name}"])


def test_directories_of_a_sweep_say_their_data(monkeypatch):
    from bpgan.launcher import runs

    script = cli.experiments.find("mnist_gan")

    def folder(*argv, **swept):
        (found,) = runs.plan(script, list(argv), [swept or {"seed": "3"}], "root")
        return found.workdir.name

    plain, named = folder(), folder("--name=mine")
    assert re.fullmatch("seed=3_[0-9a-f]{6}", plain) and named == f"mine_{plain}"
    own = folder("--dataset=folder:/data/my cats,size=28")
    assert re.fullmatch("seed=3_my-cats-size-28_[0-9a-f]{6}", own)
    swept = folder(dataset="tfds:mnist")
    assert re.fullmatch("dataset=tfds%3Amnist_[0-9a-f]{6}", swept)
    assert folder("--init_from=", "--init=") == plain != folder("--init_from=runs/a")
