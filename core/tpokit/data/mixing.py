"""Which sample comes next: arithmetic, so that every rank agrees and a resumed run needs no replay.

Sample i of a stage belongs to one source and is the k-th draw from it; both follow from i and the
seed alone. A source is gone through in a fresh permutation each epoch, and a permutation is a
function of its index, not a list: 3.5 million samples cost no memory and no start-up time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_ROUNDS = 4


@dataclass(frozen=True)
class Draw:
    """One place in a stage's order.

    Attributes:
        source: Name of the data entry.
        epoch: How often that source has been gone through before.
        index: Of the sample in the source.
    """

    source: str
    epoch: int
    index: int


class Mixture:
    """The order of a stage."""

    def __init__(self, shares: Mapping[str, float], sizes: Mapping[str, int], seed: int) -> None:
        """Prepare the order.

        Args:
            shares: Source to its share of all samples; they add up to 1.
            sizes: Source to its number of samples, at least 1.
            seed: Of the stage.
        """
        self._names = sorted(name for name, share in shares.items() if share > 0)
        total = sum(shares[name] for name in self._names)
        self._shares = [shares[name] / total for name in self._names]
        self._sizes = sizes
        self._seed = seed

    def draw(self, position: int) -> Draw:
        """The sample at a position, from 0.

        Within any stretch each source comes as often as its share says, to within
        1 + share x sources samples, and mostly to within one.
        """
        name, count = self._source(position)
        epoch, offset = divmod(count, self._sizes[name])
        key = number("order", self._seed, name, epoch)
        return Draw(name, epoch, permuted(offset, self._sizes[name], key))

    def _source(self, position: int) -> tuple[str, int]:
        """Source of a position, and how many draws it had before.

        Draw j of a source with share s stands at time ``(j + 0.5) / s``; positions are these times
        in order. About one draw falls into each unit of time, so only those near ``position`` are
        looked at.
        """
        reach = len(self._names) + 1
        begin = max(0.0, float(position - reach))
        before = [math.floor(begin * share + 0.5) for share in self._shares]
        near = sorted(
            ((draw + 0.5) / share, order, draw)
            for order, share in enumerate(self._shares)
            for draw in range(before[order], math.floor((position + reach) * share + 0.5) + 1)
        )
        _, order, draw = near[position - sum(before)]
        return self._names[order], draw


def permuted(index: int, size: int, key: int) -> int:
    """Where a pseudo-random permutation of ``range(size)`` sends an index.

    A balanced Feistel network over the next even number of bits, walked until the result lies
    inside: a bijection for every key, in constant memory.
    """
    half = max(1, math.ceil((size - 1).bit_length() / 2))
    low_mask = (1 << half) - 1
    value = index
    while True:
        left, right = value >> half, value & low_mask
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_scrambled(right, turn, key) & low_mask)
        value = (left << half) | right
        if value < size:
            return value


def _scrambled(value: int, turn: int, key: int) -> int:
    """A well mixed 64-bit number (the finaliser of splitmix64)."""
    mixed = (value + key + (turn + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return mixed ^ (mixed >> 31)


def number(*key: object) -> int:
    """A 64-bit number from anything that can be written down, the same on every machine."""
    text = "\x1f".join(str(part) for part in key).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def generator(seed: int, epoch: int, sample: str, purpose: str) -> np.random.Generator:
    """Randomness of one choice about one sample: never the global state, so any sample can be
    replayed alone.
    """
    return np.random.default_rng(number(seed, epoch, sample, purpose))
