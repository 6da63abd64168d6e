"""Base of all options models; a module of its own because checking a recipe must not import torch."""

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
