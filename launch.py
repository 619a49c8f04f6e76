"""Runs one experiment, or a sweep of them, from a checkout; ``python launch.py --help`` says how."""

from bpgan.launcher.main import main

if __name__ == "__main__":
    main()
