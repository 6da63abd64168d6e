"""What names a pretrained model."""

from pathlib import Path

import pytest

from tpokit.pretrained import revision_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("folder", "revision"),
    [
        (f"hub/models--a--b/snapshots/{COMMIT}", {"revision": COMMIT}),
        ("hub/models--a--b/snapshots/main", {}),
        (f"models/{COMMIT}", {}),
        ("models/mine", {}),
    ],
)
def test_a_snapshot_of_the_hub_is_named_by_its_commit(folder, revision):
    assert revision_of(Path(folder)) == revision
