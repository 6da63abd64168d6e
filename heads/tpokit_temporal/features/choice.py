"""From what a recipe chose to the extractor that gives it."""

from __future__ import annotations

from pathlib import Path

from tpokit_temporal.features.extractor import FeatureExtractor
from tpokit_temporal.features.files import FileExtractor
from tpokit_temporal.features.options import EncoderFeatures, FileFeatures


def make_extractor(options: EncoderFeatures | FileFeatures, folder: Path) -> FeatureExtractor:
    """The extractor that the options name.

    Args:
        options: Of all kinds but ``backbone``, whose features come with the context.
        folder: Relative paths in the options start there.

    Raises:
        UsageError: A folder or model is not there.
        CheckpointError: A model cannot be loaded.
    """
    if isinstance(options, FileFeatures):
        return FileExtractor(options, folder)
    # a process that reads files or asks the backbone does without transformers' vision models
    from tpokit_temporal.features.encoder_extractor import EncoderExtractor

    return EncoderExtractor(options, folder)
