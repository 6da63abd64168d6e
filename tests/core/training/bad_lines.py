"""A data source like ``lines`` of `tests.core.training.tiny`, some of whose samples are bad."""

from dataclasses import replace
from pathlib import Path

import tpokit
from tests.core.training.tiny import LineOptions, Lines
from tpokit import DataError, Media


class BadLineOptions(LineOptions):
    unreadable: tuple[int, ...] = ()
    blind: tuple[int, ...] = ()
    broken: tuple[int, ...] = ()


class BadLines(Lines):
    """``unreadable`` lines have no annotation, ``blind`` ones no picture, ``broken`` ones a bug."""

    Options = BadLineOptions

    def read(self, index, random):
        if index in self.options.unreadable:
            raise DataError(f"line {index} is no JSON")
        if index in self.options.broken:
            raise ZeroDivisionError("a bug of the reader")
        sample = super().read(index, random)
        if index in self.options.blind:
            sample = replace(sample, media=(Media("image", Path("gone.png")),))
        return sample


@tpokit.hookimpl
def tpokit_sources():
    return [tpokit.SourceSpec(name="bad_lines", factory=":BadLines", options=":BadLineOptions")]
