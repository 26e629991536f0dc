"""Side by side on the CPU: a decomposition of a thousand rows keeps one core busy, but hardly twice as many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def share_cores(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``work`` of each item, in their order, at the same time, each with an equal share of torch's threads.

    Each runs in a thread of its own, where gradients are recorded unless ``work`` says otherwise. With one torch thread
    or one item, it is a plain loop. An exception in one is raised here, after the others have ended.
    """
    cores = torch.get_num_threads()
    workers = min(cores, len(items))
    if workers < 2:
        return [work(item) for item in items]
    try:
        with ThreadPoolExecutor(workers, "halfv", torch.set_num_threads, (cores // workers,)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(cores)  # a thread's own number is also what threads started later begin with
