"""``python -m bpgan.launcher``: the launcher, from any directory."""

from bpgan.launcher.main import main

if __name__ == "__main__":
    main()
