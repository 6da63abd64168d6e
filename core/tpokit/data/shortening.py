"""Samples that are too long, made to fit: never through a medium, a call or a given value.

What is given up, in this order: older rounds of question and answer that show no medium, oldest
first, with the targets and given values of their marks; then frames of videos. The last round
stays, and of every video at least one frame.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from tpokit.data.pieces import MEDIA_MARK, Piece, Tokens
from tpokit.errors import DataError
from tpokit.tokens import marked_tasks
from tpokit.types import Sample, View

Shown = tuple[Sample, list[View]]
"""A sample and the backbone's views of its media."""


class Shortener:
    """Makes samples fit.

    Attributes:
        limit: Longest sample, in tokens.
        tasks: Of the model's heads.
        write: A sample with its views to the pieces of its text; raises `DataError` for a number of
            frames that the backbone cannot take.
        tokenize: Pieces, and the number of user turns, to tokens.
    """

    def __init__(
        self,
        limit: int,
        tasks: Collection[str],
        write: Callable[[Sample, list[View]], list[Piece]],
        tokenize: Callable[[list[Piece], int], Tokens],
    ) -> None:
        """Keep all that."""
        self._limit, self._tasks = limit, tasks
        self._write, self._tokenize = write, tokenize

    def __call__(
        self, sample: Sample, views: list[View]
    ) -> tuple[Sample, list[View], Tokens] | None:
        """The sample with as little left out as possible, the views that are left and its tokens.

        Returns:
            ``None`` if it cannot be made to fit.
        """
        shorter = list(self._without_rounds(sample))
        found = self._first_that_fits([(short, views) for short in shorter])
        if found is not None:
            return found
        last = shorter[-1] if shorter else sample
        fewer = [(last, kept) for kept in _fewer_frames(views)]
        return self._first_that_fits([shown for shown in fewer if self._can_be_written(*shown)])

    def _first_that_fits(
        self, candidates: Sequence[Shown]
    ) -> tuple[Sample, list[View], Tokens] | None:
        """Of candidates of falling length."""
        written: dict[int, Tokens] = {}

        def fits(place: int) -> bool:
            sample, views = candidates[place]
            asked = sum(turn.role == "user" for turn in sample.turns)
            written[place] = self._tokenize(self._write(sample, views), asked)
            return len(written[place].ids) <= self._limit

        place = bisect_left(range(len(candidates)), True, key=fits)
        return None if place == len(candidates) else (*candidates[place], written[place])

    def _can_be_written(self, sample: Sample, views: list[View]) -> bool:
        try:
            self._write(sample, views)
        except DataError:
            return False
        return True

    def _without_rounds(self, sample: Sample) -> Iterator[Sample]:
        """The sample without its oldest round that can go, without the two oldest, and so on."""
        gone: set[int] = set()
        for round_ in _rounds_that_can_go(sample):
            gone.update(round_)
            yield self._without_turns(sample, gone)

    def _without_turns(self, sample: Sample, gone: Collection[int]) -> Sample:
        """Take turns out, and what belongs to their marks."""
        kept_values = []
        for values, role in ((sample.targets, "assistant"), (sample.given, "user")):
            kept = {}
            for task in self._tasks:
                places = [
                    place
                    for place, turn in enumerate(sample.turns)
                    if turn.role == role
                    for _ in marked_tasks(turn.text, (task,))
                ]
                left = tuple(
                    value
                    for place, value in zip(places, values.get(task, ()), strict=True)
                    if place not in gone
                )
                if left:
                    kept[task] = left
            kept_values.append(kept)
        turns = tuple(turn for place, turn in enumerate(sample.turns) if place not in gone)
        return replace(sample, turns=turns, targets=kept_values[0], given=kept_values[1])


def _rounds_that_can_go(sample: Sample) -> list[tuple[int, int]]:
    """Places of question and answer of each round but the last that shows no medium, oldest
    first.
    """
    spoken = [place for place, turn in enumerate(sample.turns) if turn.role != "system"]
    rounds = list(zip(spoken[::2], spoken[1::2], strict=True))
    marked = any(MEDIA_MARK.search(turn.text) for turn in sample.turns)
    return [
        round_
        for order, round_ in enumerate(rounds[:-1])
        if not any(MEDIA_MARK.search(sample.turns[place].text) for place in round_)
        and (marked or order > 0 or not sample.media)  # without marks media stand in the first
    ]


def _fewer_frames(views: list[View]) -> Iterator[list[View]]:
    """Views with fewer and fewer frames of videos: of all in proportion, at least one of each."""
    most = max((len(view.frames) for view in views if view.kind == "video"), default=0)
    for count in range(most - 1, 0, -1):
        yield [
            view if view.kind == "image" else _spread(view, -(-len(view.frames) * count // most))
            for view in views
        ]


def _spread(view: View, count: int) -> View:
    """So many frames of a view, each from the middle of one of as many equal parts, with their
    times.
    """
    found = len(view.frames)
    if count == found:
        return view
    rows = [(2 * index + 1) * found // (2 * count) for index in range(count)]
    times_s = tuple(view.times_s[row] for row in rows)
    return replace(view, frames=view.frames[rows], times_s=times_s)
