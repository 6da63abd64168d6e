"""Kinds of values that stand in a recipe, and what is refused of them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field


def _no_truth(value: Any) -> Any:
    """Refuse ``true`` where a number is wanted; pydantic would read it as 1."""
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number")  # noqa: TRY004 - pydantic reports only this
    return value


def _compiles(text: str) -> str:
    try:
        re.compile(text)
    except re.error as cause:
        raise ValueError(f"{text!r} is no regular expression: {cause}") from cause
    return text


Number = Annotated[float, BeforeValidator(_no_truth), Field(allow_inf_nan=False)]
Weight = Annotated[Number, Field(ge=0)]
Rate = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Whole = Annotated[int, BeforeValidator(_no_truth), Field(ge=0)]
Count = Annotated[int, BeforeValidator(_no_truth), Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Expression = Annotated[str, Field(min_length=1), AfterValidator(_compiles)]


def one_or_many(value: Any) -> str:
    """Tag of a value that may be a single one or a mapping."""
    return "<many>" if isinstance(value, (dict, BaseModel)) else "<one>"
