"""A process of a run to which something happens: ``python at_fault.py FAULT INDEX MODULE FLAG...``.

The fault is met by process INDEX only. MODULE is run as ``python -m`` would.
"""

import errno
import os
import sys
import time

from jax.experimental import multihost_utils

from bpgan.runtime import checkpoint, directory, log, run, train
from bpgan.types import UserError
from experiments import toy_gan

fault, index, *sys.argv = sys.argv[1:]


def fails(owner, name, error, after=0):
    """Lets a function raise once it has been called so often."""
    real, calls = getattr(owner, name), []

    def replaced(*args, **kwargs):
        calls.append(1)
        if len(calls) > after:
            raise error
        return real(*args, **kwargs)

    setattr(owner, name, replaced)


def damage_newest():
    real, read = checkpoint.Checkpoints._read, []

    def replaced(self, step, abstract):
        read.append(step)
        found = real(self, step, abstract)  # which processes do together
        return (None, "is damaged") if len(read) == 1 else found

    checkpoint.Checkpoints._read = replaced


def change_data():
    real = toy_gan.build

    def replaced(*args, **kwargs):
        experiment = real(*args, **kwargs)
        return experiment._replace(source=experiment.source._replace(fingerprint="another"))

    toy_gan.build = replaced


def forbid_gathers():
    real = multihost_utils.assert_equal

    def replaced(tree, fail_message=""):
        assert "device_put" not in fail_message  # orbax, too, lets processes wait for each other so
        return real(tree, fail_message)

    multihost_utils.assert_equal = replaced


def wait():
    print("waiting", flush=True)
    time.sleep(600)


full = OSError(errno.ENOSPC, "No space left on device")
if os.environ.get("JAX_PROCESS_ID") == index:
    {
        "nothing": lambda: None,
        "data": lambda: fails(
            toy_gan, "build", UserError("is torn", argument="dataset", value="x")
        ),
        "other data": change_data,
        "gather": forbid_gathers,
        "log": lambda: fails(log.Log, "write", full, after=2),
        "record": lambda: fails(directory, "write_record", full),
        "result": lambda: fails(run, "write_json", full),
        "bug": lambda: fails(log.Log, "write", TypeError("a bug"), after=2),
        "stop": lambda: fails(log.Log, "write", train.Anomaly("it diverged"), after=2),
        "checkpoint": damage_newest,
        "slow": lambda: setattr(toy_gan, "build", lambda *_, **__: wait()),
    }[fault]()
# As `python -m` would, but for `build`, which is patched: the module is not read again.
module = sys.modules[f"experiments.{sys.argv[0]}"]
from bpgan import cli  # noqa: E402

cli.main(module.Config, module.build, module.PRESETS)
