"""Types and defaults of keys in the words of a recipe."""

import inspect
import json
import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", dict: "table", type(None): "unset"}
"""As TOML calls them."""


def type_text(annotation: Any, constraints: Sequence[Any] = ()) -> str:
    """Return a type with its bounds, e.g. `integer, at least 1`, or the values that are allowed.

    Args:
        annotation: of a parameter or field.
        constraints: bounds of annotated-types.
    """
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return "any"
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *metadata = get_args(annotation)
        return type_text(inner, [*constraints, *_bounds_in(metadata)])
    if origin is Literal:
        text = " or ".join(_value_text(value) for value in get_args(annotation))
    elif origin in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        text = " or ".join(dict.fromkeys(type_text(member) for member in members))
    elif origin in (list, tuple, Sequence) or getattr(origin, "__name__", "") in ("Sequence", "Iterable"):
        members = [member for member in get_args(annotation) if member is not ...]
        text = "list of " + ", ".join(dict.fromkeys(type_text(member) for member in members))
    elif origin is not None:
        text = NAMES.get(origin, "table")
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        text = "table"
    else:
        text = NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))
    bounds = [_bound_text(constraint) for constraint in constraints]
    return ", ".join([text, *(bound for bound in bounds if bound)])


def default_text(default: Any) -> str:
    """Return a default as it is written after `key=`, as code; empty if the key is not set."""
    if default is None:
        return "unset"
    if isinstance(default, BaseModel):
        return "its own defaults"
    return f"`{_value_text(default, quotes=False)}`"


def _bounds_in(metadata: Sequence[Any]) -> list[Any]:
    """Return the bounds among what an annotation holds; pydantic's `Field` holds a list of them."""
    bounds = []
    for item in metadata:
        if isinstance(item, FieldInfo):
            bounds += item.metadata
        else:
            bounds.append(item)
    return bounds


def _bound_text(constraint: Any) -> str:
    match constraint:
        case annotated_types.Ge(ge=bound):
            return f"at least {bound:g}"
        case annotated_types.Gt(gt=bound):
            return f"above {bound:g}"
        case annotated_types.Le(le=bound):
            return f"at most {bound:g}"
        case annotated_types.Lt(lt=bound):
            return f"below {bound:g}"
    return ""


def _value_text(value: Any, *, quotes: bool = True) -> str:
    if isinstance(value, str) and not quotes:
        return value or '""'
    try:
        return json.dumps(value)
    except TypeError:
        return str(value)
