"""Where the packages are: the experiments, a folder of their own in a checkout, are installed as ``bpgan.experiments``.

Everything else is in ``pyproject.toml``.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["bpgan", "bpgan.*"]), "bpgan.experiments"],
    package_dir={"bpgan.experiments": "experiments"},
)
