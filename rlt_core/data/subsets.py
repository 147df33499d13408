"""Subsets chosen by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def choose(items: Sequence[Item], count: int | None, seed: int) -> list[Item]:
    """`count` of the items, in their order; all if `count` is empty or not smaller."""
    if count is None or count >= len(items):
        return list(items)
    places = np.random.default_rng(seed).permutation(len(items))[:count]
    return [items[place] for place in sorted(places)]
