"""SAM 2 from prompt tokens: all that the mask head uses of it, and the only door to sam2.

>>> sam2 = build("sam2.1_hiera_tiny", checkpoint=path).set_trained("nothing")
>>> maps = sam2.encode(resize_frames(frames, sam2.image_size))
>>> masks = sam2.segment(maps, tokens, object_frames)
>>> logits = resized(masks.gated().chosen, height, width)

The package sam2 is used as it is, neither copied nor patched: `tpokit_mask.sam2` calls its parts
one by one. `Sam2Sizes` and `RELEASED` can be had without torch from `tpokit_mask.sam2.sizes`.
"""

from __future__ import annotations

from tpokit_mask.resizing import resized
from tpokit_mask.sam2.build import build
from tpokit_mask.sam2.checkpoints import load_weights
from tpokit_mask.sam2.outputs import FeatureMaps, Masks
from tpokit_mask.sam2.parts import Sam2, Trained
from tpokit_mask.sam2.pixels import normalise, resize_frames
from tpokit_mask.sam2.sizes import RELEASED, Sam2Sizes
from tpokit_mask.sam2.tracking import Memory, Tracker, Tracking, stream, track

__all__ = [
    "RELEASED",
    "FeatureMaps",
    "Masks",
    "Memory",
    "Sam2",
    "Sam2Sizes",
    "Tracker",
    "Tracking",
    "Trained",
    "build",
    "load_weights",
    "normalise",
    "resize_frames",
    "resized",
    "stream",
    "track",
]
