"""Which sample comes next: arithmetic, so that every rank agrees and a resumed run needs no replay.

Position i of a stage belongs to one task of the mix (a group, or a data entry of its own), is there
the k-th draw of one of its entries, and that draw is one sample; all of it follows from i and the
seed alone. An entry is gone through in a fresh permutation each epoch, and a permutation is a
function of its index, not a list: 3.5 million samples cost no memory and no start-up time.

Shares by size, with n_i samples of entry i after its cap, and temperature T::

    share_i = n_i^(1/T) / sum_j n_j^(1/T)

This is temperature-scaled mixing with an artificial limit of Raffel et al., arXiv 1910.10683,
section 3.5.2 (their K is our cap): T = 1 is in proportion to size, a large T shares equally.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tpokit.recipe_mix import Mix, MixGroup, MixPlan, mix_plan

if TYPE_CHECKING:
    from tpokit.recipe import Recipe, StageEntry

_64_BITS = (1 << 64) - 1
_TURN_KEYS = tuple((turn + 1) * 0x9E3779B97F4A7C15 for turn in range(4))
_TOGETHER = 256  # turns that are worked out at once


@dataclass(frozen=True)
class Draw:
    """One place in a stage's order.

    Attributes:
        task: Name of the group in the mix, or of the data entry if it is in none.
        source: Name of the data entry.
        epoch: How often that entry has been gone through before.
        index: Of the sample in the source.
    """

    task: str
    source: str
    epoch: int
    index: int


@dataclass(frozen=True)
class Portion:
    """What a mix uses of one data entry.

    Attributes:
        task: Name of its group, or its own.
        source: Name of the data entry.
        share: Of the samples of the stage, in (0, 1].
        size: Samples of the source.
        used: How many of them are drawn from: all, or as many as its cap.
    """

    task: str
    source: str
    share: float
    size: int
    used: int

    def index(self, place: int) -> int:
        """Index in the source of a used sample, by its place in ``range(used)``.

        Which ones a cap leaves follows from name and size alone: the same ones in every stage and
        with every seed, and a larger cap adds to them.
        """
        if self.used == self.size:
            return place
        return permuted(place, self.size, number("used", self.source))


def portions(plan: MixPlan, sizes: Mapping[str, int]) -> tuple[tuple[Portion, ...], ...]:
    """What a mix uses, for each of its groups.

    Args:
        plan: The mix.
        sizes: Data entry to its number of samples, at least 1.
    """
    used = {
        name: min(sizes[name], group.caps.get(name, sizes[name]))
        for group in plan.groups
        for name in group.entries
    }
    totals = [sum(used[name] for name in group.entries) for group in plan.groups]
    written = [group.share for group in plan.groups if group.share is not None]
    shares = _scaled(written or _by_size(totals, plan.temperature))
    return tuple(
        _of_group(group, share, used, sizes)
        for group, share in zip(plan.groups, shares, strict=True)
    )


def _of_group(
    group: MixGroup, share: float, used: Mapping[str, int], sizes: Mapping[str, int]
) -> tuple[Portion, ...]:
    inside = group.shares or _by_size([used[name] for name in group.entries], group.temperature)
    return tuple(
        Portion(group.task, name, share * own, sizes[name], used[name])
        for name, own in zip(group.entries, _scaled(inside), strict=True)
    )


def _by_size(sizes: Sequence[int], temperature: float) -> list[float]:
    largest = max(sizes)  # keeps the powers between 0 and 1
    return [float((size / largest) ** (1 / temperature)) for size in sizes]


def _scaled(shares: Sequence[float]) -> list[float]:
    total = sum(shares)
    return [share / total for share in shares]


def with_lengths(recipe: Recipe, sizes: Mapping[str, int]) -> Recipe:
    """A recipe whose stages with epochs have steps, too: the one place where they are counted.

    An epoch is as many samples as all entries of the mix have, after their caps; its steps are
    rounded up to whole ones. So with shares in proportion to size and one epoch every sample comes
    once, and then, to fill the last step, some of the next epoch.

    Args:
        recipe: As it was read; a dump of the answer still says epochs.
        sizes: Data entry to its number of samples. Stages whose entries are not all there are left
            as they are.
    """
    return recipe.model_copy(
        update={"stages": tuple(_with_length(stage, sizes) for stage in recipe.stages)}
    )


def _with_length(stage: StageEntry, sizes: Mapping[str, int]) -> StageEntry:
    if stage.epochs is None or not set(stage.plan.entries) <= set(sizes):
        return stage
    epoch = sum(portion.used for group in portions(stage.plan, sizes) for portion in group)
    steps = math.ceil(round(stage.epochs * epoch, 6) / stage.samples_per_step)
    return stage.model_copy(update={"steps": max(1, steps)})


class Mixture:
    """The order of a stage.

    Attributes:
        portions: What is used of each data entry, by its name.
    """

    def __init__(self, mix: Mix, sizes: Mapping[str, int], seed: int, block: int = 1) -> None:
        """Prepare the order.

        Args:
            mix: Of the stage.
            sizes: Data entry to its number of samples, at least 1.
            seed: Of the stage.
            block: So many positions in a row, from a multiple of it on, are of one task. With
                processes times samples that each of them reads at once (`Split.world` x
                `Split.piece`), all ranks have the same task at the same time
                (``run.schedule: same_task``): they read the pieces of a step in turn. Shares of
                tasks are then kept over blocks, those of entries inside a task as ever. Another
                block is another order, so a resumed run must have the same.
        """
        groups = portions(mix_plan(mix), sizes)
        self.portions = {portion.source: portion for group in groups for portion in group}
        self._groups = groups
        self._seed = seed
        self._block = block
        self._tasks = _Turns([sum(portion.share for portion in group) for group in groups])
        self._entries = [_Turns([portion.share for portion in group]) for group in groups]

    def draw(self, position: int) -> Draw:
        """The sample at a position, from 0.

        Within any stretch each task comes as often as its share says, to within
        1 + share x tasks blocks, and mostly to within one; so does an entry among the samples of
        its task.
        """
        block, place = divmod(position, self._block)
        task, turn = self._tasks.at(block)
        entry, count = self._entries[task].at(turn * self._block + place)
        portion = self._groups[task][entry]
        epoch, offset = divmod(count, portion.used)
        key = _order_key(self._seed, portion.source, epoch)
        index = portion.index(permuted(offset, portion.used, key))
        return Draw(portion.task, portion.source, epoch, index)


class _Turns:
    """Members that take turns by their shares.

    Turn j of a member with share s stands at time ``(j + 0.5) / s``; all turns are taken in the
    order of these times. About one falls into each unit of time, so that those around a turn are
    found without those before.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self._shares = np.array(_scaled(shares))
        self._members = np.arange(len(shares))
        self._known = (-1, self._members, self._members)  # of no chunk yet

    def at(self, turn: int) -> tuple[int, int]:
        """Whose turn it is, and how many that member had before."""
        if len(self._shares) == 1:
            return 0, turn
        chunk, place = divmod(turn, _TOGETHER)
        if self._known[0] != chunk:
            self._known = (chunk, *self._worked_out(chunk * _TOGETHER))
        _, members, counts = self._known
        return members.item(place), counts.item(place)

    def _worked_out(self, begin: int) -> tuple[np.ndarray, np.ndarray]:
        """Members and their turns before, for `_TOGETHER` turns from one on."""
        reach = len(self._shares) + 1
        times = np.array([[max(0, begin - reach)], [begin + _TOGETHER + reach]])
        first, last = (times * self._shares + 0.5).astype(np.int64)  # turns before both times
        counts = last + 1 - first
        members = self._members.repeat(counts)
        own = np.arange(len(members)) - (counts.cumsum() - counts - first)[members]
        order = ((own + 0.5) / self._shares[members]).argsort(kind="stable")
        order = order[begin - int(first.sum()) :][:_TOGETHER]
        return members[order], own[order]


@lru_cache(maxsize=1024)
def _order_key(seed: int, source: str, epoch: int) -> int:
    return number("order", seed, source, epoch)


def permuted(index: int, size: int, key: int) -> int:
    """Where a pseudo-random permutation of ``range(size)`` sends an index.

    A balanced Feistel network over the next even number of bits, walked until the result lies
    inside: a bijection for every key, in constant memory. Its rounds mix by the finaliser of
    splitmix64, written out here because a call for each round takes as long as the round.
    """
    half = max(1, math.ceil((size - 1).bit_length() / 2))
    low_mask = (1 << half) - 1
    value = index
    while True:
        left, right = value >> half, value & low_mask
        for turn in _TURN_KEYS:
            mixed = (right + key + turn) & _64_BITS
            mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
            mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _64_BITS
            left, right = right, left ^ ((mixed ^ (mixed >> 31)) & low_mask)
        value = (left << half) | right
        if value < size:
            return value


def number(*key: object) -> int:
    """A 64-bit number from anything that can be written down, the same on every machine."""
    text = "\x1f".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def generator(seed: int, epoch: int, sample: str, purpose: str) -> np.random.Generator:
    """Randomness of one choice about one sample: never the global state, so any sample can be
    replayed alone.
    """
    return cast("np.random.Generator", _WhenDrawn((seed, epoch, sample, purpose)))


class _WhenDrawn:
    """A generator that is made when something is drawn from it: numpy takes as long for that as
    reading a line takes, and most samples draw nothing.
    """

    def __init__(self, key: tuple[object, ...]) -> None:
        self._key = key

    @cached_property
    def _made(self) -> np.random.Generator:
        return np.random.default_rng(number(*self._key))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)
