"""Faults on purpose in single trials, to try a search: `trial 3: kill rank 0 at image 600` (see
faults.py).
"""

from __future__ import annotations

import re

from udl_dist.core import faults
from udl_dist.errors import UsageError


def parse(text: str) -> dict[int, str]:
    """The faults by trial, of parts like `trial N: FAULT`, parted by semicolons; raise UsageError
    in one line.
    """
    found: dict[int, str] = {}
    for part in filter(str.strip, text.split(";")):
        said = re.fullmatch(r"\s*trial (\d+):(.*)", part)
        if not said:
            raise UsageError(
                f"--faults: what is {part.strip()!r}? In a search it is said like 'trial 3: kill"
                " rank 0 at image 600'"
            )
        number = int(said[1])
        found[number] = f"{found[number]}; {said[2]}" if number in found else said[2]
    return {number: faults.checked(each) for number, each in found.items()}
