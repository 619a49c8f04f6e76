"""Commands at random, right and wrong: each ends in one line and an exit code that a scheduler understands."""

import collections
import traceback

import jax
import numpy as np
import pytest

from bpgan import cli
from bpgan.cli import experiments
from bpgan.launcher import flags
from bpgan.launcher import main as launch
from bpgan.runtime import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200), pytest.mark.filterwarnings("ignore")]

CODES = {0, 2, 3, 75}

JUNK = (
    "", " ", "0", "-1", "1", "2", "0.5", "1e-3", "1e999", "-1e999", "nan", "inf", "-0.0", "0x10", "1_000",
    "1e3", "٣", "true", "False", "yes", "none", "all", "--epochs=2", "--", "-", "=", "a=b", "a b", "a,b", ",",
    ":", "::", "x" * 3000, "9" * 400, "é", "\n", "a\nb", "\t", "\u0000", "\udcff", "../..", "/", "~",
    "~nobody/x", "$HOME", "%s", "{}", "{0.x}", "[]", "null", "1e-400", "2147483648", "-2147483649",
    "4294967296", "18446744073709551616", "1ep", "0ep", "1e5ep", "-1ep", "1,2", "min:loss", "max:",
    "3,best=1,min:loss", "normal:0", "normal:99999999999", "r1+r1", "r1+", "+", "cosine:1e-3:0", "linear:",
    "mlp", "dcgan:", "dcgan:1", "dcgan:3", "lite:0", "stream:0", "stream:-1", "stream:x",
)  # fmt: skip


def value_of(spec, config_class, presets, rng):
    """A value for a flag: one that is near to what it allows, or one that is at home elsewhere, or junk."""
    choice = rng.random()
    if spec.choices and choice < 0.6:
        return cli.show(spec.choices[rng.integers(len(spec.choices))])
    if choice < 0.25:
        return cli.show(spec.default)
    settings = [preset[spec.name] for preset in presets.values() if spec.name in preset]
    if settings and choice < 0.5:
        return cli.show(settings[rng.integers(len(settings))])
    if spec.low is not None and choice < 0.6:
        return cli.show(spec.low)
    if spec.high is not None and choice < 0.7:
        return cli.show(spec.high)
    if spec.type is int and choice < 0.8:
        return str(rng.integers(-2, 70))
    if spec.type is float and choice < 0.8:
        return f"{10 ** rng.uniform(-6, 3):.3g}"
    if choice < 0.85:  # of another flag
        others = list(cli.flags_of(config_class).values())
        return cli.show(others[rng.integers(len(others))].default)
    return str(rng.choice(JUNK))


def arguments(module, rng):
    """A command line of a few flags, some misspelled or malformed."""
    specs = list(cli.flags_of(module.Config).values())
    argv = []
    if rng.random() < 0.7:
        argv.append(f"--preset={rng.choice([*module.PRESETS, 'smoke', 'nothing'])}")
    for _ in range(rng.integers(0, 5)):
        spec = specs[rng.integers(len(specs))]
        if spec.name == "workdir":
            continue
        value = value_of(spec, module.Config, module.PRESETS, rng)
        form = rng.random()
        if form < 0.9:
            argv.append(f"--{spec.name}={value}")
        elif form < 0.93:
            argv += [f"--{spec.name}", value]
        elif form < 0.96:
            argv.append(f"--{spec.name}")
        else:
            name = spec.name.replace("_", "-") if rng.random() < 0.5 else spec.name[:-1]
            argv.append(f"--{name}={value}")
    return argv


def traced(algorithm, source, spec, plan, *, mode="jit"):
    """In the place of ``train.fit``: the step is traced, and neither compiled nor run."""
    if not source.windows and mode == "jit":
        root = jax.random.key(spec.seed)
        state = jax.eval_shape(algorithm.init, root)
        jax.eval_shape(
            lambda s, d: algorithm.step(s, source.batch_at(d, s.step), root), state, source.data
        )
    return train.Result("done", plan.steps, {}, {})


def end_of(call, argv, capfd):
    """The exit code of a command and what is wrong with how it ended, or nothing."""
    capfd.readouterr()
    try:
        code = call(argv)
    except SystemExit as error:
        code = error.code
    except Exception as error:
        if type(error).__name__ == "UserError":  # the launcher's ``main`` prints it
            code = cli.fail(error)
        else:
            return (
                1,
                f"{error!r:.300} {[x.strip() for x in traceback.format_exc().splitlines()[-4:-1]]}",
            )
    out, err = capfd.readouterr()
    if code not in CODES:
        return code, f"exit code {code}"
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    if code == 2 and len(said) != 1:
        return code, f"said {err[-300:]!r}"
    if code == 2 and len(said[0]) > 1000:
        return code, f"an error of {len(said[0])} letters"
    return code, ""


def check(total, commands, capfd):
    ends, faults = collections.Counter(), []
    for call, argv in commands:
        code, wrong = end_of(call, argv, capfd)
        ends[code] += 1
        if wrong:
            faults.append(f"{argv!r:.400}: {wrong}")
    with capfd.disabled():
        print(
            f"\n{total} commands, exit codes {dict(ends)}, {len(faults)} faults",
            *faults,
            sep="\n  ",
        )
    assert not faults


@pytest.mark.parametrize("name", experiments.names())
def test_experiments(name, tmp_path, capfd, monkeypatch):
    """Each is resolved, built and traced; only compilation and training are left out."""
    monkeypatch.chdir(tmp_path)
    fit = train.fit  # of classifiers whose features are compared

    def fit_or_trace(algorithm, source, spec, plan, **options):
        return (traced if plan.name == name else fit)(algorithm, source, spec, plan, **options)

    monkeypatch.setattr(train, "fit", fit_or_trace)
    script = experiments.find(name)
    module = script.module
    if not script.trains:
        monkeypatch.setattr(module, "run", lambda cfg: None)
    total = 150

    def commands():
        for seed in range(total):
            argv = arguments(module, np.random.default_rng([seed, len(name)]))
            yield lambda argv: cli.run(script.config, script.action, script.presets, argv), argv

    check(total, commands(), capfd)


def test_launcher(tmp_path, capfd, monkeypatch):
    """Sweeps, searches, budgets and clusters, up to what would be run."""
    monkeypatch.chdir(tmp_path)
    total = 600
    axes = (
        "seed=0:3", "seed=0:99999999999", "seed=3:0", "seed=1,1", "lr=log:1e-4:1", "lr=log:0:1", "g_lr=log:1e-5:1e-3",
        "g_lr=1e-4,x", "b1=uniform:0:0.9", "loss=choice:wgan,hinge", "loss=wgan", "preset=smoke,article", "epochs=1,2",
        "workdir=a,b", "nothing=1", "=", "seed", "seed=", "g_lr=uniform:nan:1", "batch_size=log:1:64",
        "g_lr=" + ",".join("1" * n for n in range(1, 60)), "seed=choice:", "seed=-1:2", "d_steps=1:1000000000",
        "keep='3,best=1,min:d/loss',5", "keep='3", "loss='wgan'x",
    )  # fmt: skip

    def commands():
        for seed in range(total):
            rng = np.random.default_rng(seed)
            argv = [
                f"--experiment={rng.choice(['mnist_gan'] * 20 + [*experiments.names(), 'nothing', '_cli', '../x', ''])}"
            ]
            argv += [f"--sweep={rng.choice(axes)}" for _ in range(rng.integers(0, 3))]
            for spec in rng.choice(len(flags.TABLE), rng.integers(0, 4), replace=False):
                spec = flags.TABLE[spec]
                if spec.name in ("experiment", "sweep"):
                    continue
                value = value_of(spec, cli.RunConfig, {}, rng)
                argv.append(f"--{spec.name}={value}")
            yield launch.run, [*argv, "--dry_run"]

    check(total, commands(), capfd)
