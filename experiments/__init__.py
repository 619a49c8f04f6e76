"""One experiment per file; ``python launch.py --list`` describes them."""
