"""What a sweep may cost."""

import math
import re
from typing import NamedTuple


class Budget(NamedTuple):
    """An amount of ``unit``, which is ``s`` (seconds of training) or ``img`` (real images seen)."""

    amount: float = math.inf
    unit: str = "s"

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Of ``90s``, ``30m``, ``2h`` or ``5e6img``; unlimited if empty. Raises ValueError."""
        if not text:
            return cls()
        match = re.fullmatch(r"((?:\d+\.?\d*|\.\d+)(?:e\d+)?)(s|m|h|img)", text)
        if match is None:
            raise ValueError("must be like 90s, 30m, 2h or 5e6img")
        factor = {"s": 1.0, "m": 60.0, "h": 3600.0, "img": 1.0}[match[2]]
        return cls(float(match[1]) * factor, "img" if match[2] == "img" else "s")

    @property
    def is_limited(self) -> bool:
        return self.amount < math.inf


UNLIMITED = Budget()
