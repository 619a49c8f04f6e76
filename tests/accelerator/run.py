"""A process of a test: trains a preset and prints one line of JSON, with the SHA-256 of its whole state.

    python tests/accelerator/run.py EXPERIMENT STEPS CALLS FLAGS...

The steps are spread over so many calls of the compiled program.
"""

import hashlib
import importlib
import json
import sys


def main(name: str, steps: str, calls: str, *argv: str) -> None:
    import jax
    import numpy as np

    from bpgan import cli
    from bpgan.runtime import distributed
    from bpgan.runtime.program import compile_program

    distributed.setup()
    module = importlib.import_module(f"experiments.{name}")
    built = module.build(cli.resolve(module.Config, module.PRESETS, list(argv)))
    program = compile_program(built.algorithm, built.source, seed=0, devices=1)
    carry, done = program.init(), 0
    for i in range(int(calls)):
        k = (int(steps) - done) // (int(calls) - i)
        carry, finite = program.run(carry, k)
        done += k
        assert bool(finite)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(carry.state):
        digest.update(np.asarray(leaf).tobytes())
    print(json.dumps({"bits": digest.hexdigest(), "step": done}))


if __name__ == "__main__":
    main(*sys.argv[1:])
