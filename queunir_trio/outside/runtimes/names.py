"""Which names of entries in a slice's directory may be handled: plain ones, that lead nowhere else."""

import re
from collections.abc import Iterable
from typing import Final

_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


def check_names(names: Iterable[str]) -> list[str]:
    """The names as a list. ValueError: one of them could mean something outside of the directory."""
    found = list(names)
    for name in found:
        if _PLAIN.fullmatch(name) is None:
            raise ValueError(f"{name!r} is not the plain name of an entry")
    return found
