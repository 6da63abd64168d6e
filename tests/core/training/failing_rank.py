"""Script: two ranks write a checkpoint; the second cannot in step 4. Says what each raised."""

import errno
import sys
from pathlib import Path

from tpokit import CheckpointError
from tpokit.training.ranks import Ranks
from tpokit.training.resume import StageCheckpoints


def run(folder):
    ranks = Ranks.here()
    ranks.join(timeout_s=60)
    checkpoints = StageCheckpoints(folder, "heads", ranks)
    for step in (2, 4):
        try:
            with checkpoints.writing(step) as partial:
                (partial / f"{ranks.rank}").write_text("x")
                if ranks.rank == 1 and step == 4:
                    raise OSError(errno.ENOSPC, "No space left on device")
        except CheckpointError as told:
            sys.stdout.write(f"{told}\n")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
