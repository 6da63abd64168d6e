"""What is wrong with plain data, in words: pydantic's errors as `tpokit.Problem`."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from tpokit.errors import Problem
from tpokit.near_misses import did_you_mean, listed

_LIMITS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_KINDS = {
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "list_type": "a list",
    "tuple_type": "a list",
}
_FIXED = {
    "missing": "must be given",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
}


def join_path(parent: str, *steps: str | int) -> str:
    """A path as the user writes it: ``stages[1].learning_rate``."""
    for step in steps:
        if isinstance(step, int):
            parent += f"[{step}]"
        else:
            parent += f".{step}" if parent else step
    return parent


def check(model: type[BaseModel], data: Any, parent: str = "") -> list[Problem]:
    """Everything that a model finds wrong with plain data.

    Args:
        model: A pydantic model.
        data: Plain data, usually a dict.
        parent: Path of the data itself.
    """
    try:
        model.model_validate(data)
    except ValidationError as error:
        return problems_of(error, model, parent)
    return []


def problems_of(error: ValidationError, model: type[BaseModel], parent: str = "") -> list[Problem]:
    """The findings of a validation that failed, in pydantic's order."""
    return [_problem(details, model, parent) for details in error.errors()]


def _problem(details: ErrorDetails, model: type[BaseModel], parent: str) -> Problem:
    # a tag of a union stands in the location as "<tag>"; the user never wrote it
    steps = [step for step in details["loc"] if not str(step).startswith(("<", "["))]
    return Problem(join_path(parent, *steps) or "(all)", _message(details, model, steps))


def _message(details: ErrorDetails, model: type[BaseModel], steps: list[str | int]) -> str:
    kind, found, context = details["type"], details["input"], details.get("ctx", {})
    text = f"{details['msg']}, found {found!r}"
    if kind == "extra_forbidden":
        known = _fields_at(model, steps[:-1])
        text = f"no such key{did_you_mean(steps[-1], known)} (known: {listed(known)})"
    elif kind in _KINDS:
        text = f"{found!r} is not {_KINDS[kind]}"
    elif kind in _LIMITS:
        name, words = _LIMITS[kind]
        text = f"{found!r} must be {words} {context[name]:g}"
    elif kind == "literal_error":
        expected = str(context["expected"])
        near = did_you_mean(found, expected.replace("'", "").replace(" or ", ", ").split(", "))
        text = f"{found!r} is not {expected}{near}"
    elif kind == "value_error":
        text = str(context["error"])
    elif kind == "string_pattern_mismatch":
        text = f"{found!r} must fit {context['pattern']}"
    elif kind in _FIXED:
        text = _FIXED[kind]
    return text


def _fields_at(annotation: Any, steps: list[str | int]) -> list[str]:
    """Keys that are known at a path below a model, as far as its annotations tell."""
    for candidate in _alternatives(annotation):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            if not steps:
                return [field.alias or name for name, field in candidate.model_fields.items()]
            field = candidate.model_fields.get(str(steps[0]))
            if field is not None:
                return _fields_at(field.annotation, steps[1:])
        elif steps and get_origin(candidate) in {dict, list, tuple, Mapping}:
            members = [member for member in get_args(candidate) if member is not Ellipsis]
            return _fields_at(members[-1], steps[1:])
    return []


def _alternatives(annotation: Any) -> list[Any]:
    """Members of a union, markers taken off."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in {Union, types.UnionType}:
        return [one for member in get_args(annotation) for one in _alternatives(member)]
    return [annotation]


def valid_parts(annotation: Any, data: Any) -> Any:
    """The data as the annotated type, with ``None`` wherever they are not valid.

    So what one part says about another can be checked although a third part is wrong. Models are
    made without validation: a required field that is missing is ``None``, unknown keys are left
    out.
    """
    if data is None:
        return None
    candidates = [one for one in _alternatives(annotation) if one is not type(None)]
    rebuild = _rebuilder(candidates[0], data) if len(candidates) == 1 else None
    if rebuild is not None:
        return rebuild()
    try:
        return TypeAdapter(annotation).validate_python(data)
    except ValidationError:
        return None


def _rebuilder(annotation: Any, data: Any) -> Callable[[], Any] | None:
    """How to go on inside a model, a mapping or a list; ``None`` for anything else."""
    origin, members = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if isinstance(data, dict) and annotation.model_config.get("extra") != "allow":
            return lambda: _valid_model(annotation, data)
    elif origin is dict and isinstance(data, dict):
        return lambda: {str(key): valid_parts(members[1], value) for key, value in data.items()}
    elif origin is tuple and isinstance(data, (list, tuple)):
        return lambda: tuple(valid_parts(members[0], value) for value in data)
    return None


def _valid_model(model: type[BaseModel], data: dict[str, Any]) -> BaseModel:
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name in data:
            annotation = field.annotation
            for marker in field.metadata:
                annotation = Annotated[annotation, marker]  # type: ignore[assignment]
            values[name] = valid_parts(annotation, data[name])
        elif field.is_required():
            values[name] = None
    return model.model_construct(**values)
