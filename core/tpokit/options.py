"""Base of all options models; apart from the contracts, because checking imports no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """What a recipe may set on a plugin: a pydantic model in which every field says its unit and
    meaning.

    An unknown name is an error, and the values cannot change once read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoOptions(Options):
    """For what takes no options."""
