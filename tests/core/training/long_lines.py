"""A data source of conversations, some of which are too long."""

import tpokit
from tests.core.training.tiny import LineOptions, Lines
from tpokit import Sample, Turn

ROUND = (Turn("user", "where is it"), Turn("assistant", "it is here"))


class LongLines(Lines):
    """Sample i has i rounds modulo 3 in front of its own one."""

    Options = LineOptions

    def read(self, index, random):
        own = super().read(index, random)
        return Sample(own.id, (*ROUND * (index % 3), *own.turns), own.media, own.targets, own.given)


@tpokit.hookimpl
def tpokit_sources():
    return [tpokit.SourceSpec(name="long_lines", factory=":LongLines", options=":LineOptions")]
