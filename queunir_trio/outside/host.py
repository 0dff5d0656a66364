"""The machine the service runs on: its memory, and what a process holds of it. Both are a read of a small file."""

from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `available` is what can be had without swapping."""

    total: int
    available: int
    swap_total: int
    swap_used: int


def memory() -> Memory:
    """How much there is, and how much of it is free."""
    ram, swap = psutil.virtual_memory(), psutil.swap_memory()
    return Memory(ram.total, ram.available, swap.total, swap.used)


def resident(pid: int | None) -> int | None:
    """The bytes of memory that a process holds; None where there is no such process, or it is not ours to look at."""
    if pid is None:
        return None
    try:
        size: int = psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return None
    return size
