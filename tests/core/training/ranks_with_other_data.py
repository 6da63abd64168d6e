"""Script: train a recipe on two ranks, of which the second reads another file; prints the error."""

import sys

from tests.core.training.small_runs import read_recipe
from tpokit import UsageError
from tpokit.training.ranks import Ranks
from tpokit.training.stages import train

if __name__ == "__main__":
    other = [] if Ranks.here().first else ["data.first.options.annotations=other.jsonl"]
    try:
        train(*read_recipe(sys.argv[1], "run.engine=ddp", *other))
    except UsageError as cause:
        print(cause)  # noqa: T201 - what the test reads
