"""What a factory's signature says about its arguments: checked, completed with defaults, explained in plain words."""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import to_jsonable_python

from reptk.config.registry import nearest

Problem = tuple[str, str]
"""A dotted key and what is wrong with it."""


class Checked(NamedTuple):
    """Arguments completed with the factory's defaults, names it does not take, and what is wrong with the others."""

    complete: dict[str, Any]
    unknown: list[str]
    problems: list[Problem]


def check(factory: Callable[..., Any], chosen: Mapping[str, Any], given: Sequence[str] = ()) -> Checked:
    """Hold arguments against a factory's signature, as plain values that TOML can hold.

    Args:
        factory: class or function.
        chosen: the arguments.
        given: parameters that somebody else fills in.
    """
    model = _model(factory, given)
    takes_all = model.model_config["extra"] == "allow"
    unknown = [] if takes_all else [name for name in chosen if name not in names(factory, given)]
    known = {name: value for name, value in chosen.items() if name not in unknown}
    try:
        chosen = model.model_validate(known).model_dump(mode="json", by_alias=True, exclude_unset=True)
        return Checked(_with_defaults(factory, given, chosen), unknown, [])
    except ValidationError as error:
        return Checked(known, unknown, problems_of(error))


def names(factory: Callable[..., Any], given: Sequence[str] = ()) -> list[str]:
    """The arguments that may be chosen for a factory, those `given` by somebody else left out."""
    parameters = _signature(factory).parameters.items()
    return [name for name, parameter in parameters if parameter.kind in _NAMED and name not in given]


def problems_of(error: ValidationError, model: type[BaseModel] | None = None) -> list[Problem]:
    """Every problem of a pydantic error; `model` lets unknown keys be answered with the nearest valid one."""
    return [(_dotted(item["loc"]), _message(item, model)) for item in error.errors(include_url=False)]


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing."""
    close = nearest(name, known)
    return f"; did you mean {close[0]!r}?" if close else ""


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _signature(factory: Callable[..., Any]) -> inspect.Signature:
    torch = sys.modules.get("torch")  # which may wrap __init__, so that neither its name nor its module tells
    if torch is not None and inspect.isclass(factory) and factory.__init__ is torch.nn.Module.__init__:
        return inspect.Signature()  # nn.Module's own __init__(*args, **kwargs) takes nothing either
    try:
        return inspect.signature(factory, eval_str=True)
    except Exception:  # an annotation that only a type checker can resolve
        return inspect.signature(factory)


def _model(factory: Callable[..., Any], given: Sequence[str]) -> type[BaseModel]:
    signature = _signature(factory)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    fields: dict[str, Any] = {}
    for number, name in enumerate(names(factory, given)):
        parameter = signature.parameters[name]
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        # Fields are numbered and go by their alias: a parameter may have a name that pydantic uses itself.
        fields[f"field_{number}"] = (_type(parameter.annotation), Field(default, alias=name))
    config = ConfigDict(
        extra="allow" if takes_any else "forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        arbitrary_types_allowed=True,
    )
    return create_model("Arguments", __config__=config, **fields)


def _type(annotation: Any) -> Any:
    """The annotation where pydantic can check it, else anything."""
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return Any
    try:
        config = ConfigDict(arbitrary_types_allowed=True)
        create_model("Trial", __config__=config, value=(annotation, ...)).model_rebuild(raise_errors=True)
    except Exception:
        return Any
    return annotation


def _with_defaults(factory: Callable[..., Any], given: Sequence[str], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen arguments with the defaults of the others; one that TOML cannot hold is left out, and so applies."""
    parameters = _signature(factory).parameters
    complete = {}
    for name in names(factory, given):
        try:
            complete[name] = chosen[name] if name in chosen else to_jsonable_python(parameters[name].default)
            if complete[name] is not None:
                tomli_w.dumps({name: complete[name]})
        except (ValueError, TypeError):  # PydanticSerializationError and UnicodeDecodeError are ValueErrors
            complete.pop(name, None)
    return complete | chosen


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)


def _message(item: Any, model: type[BaseModel] | None) -> str:
    if item["type"] == "missing":
        return "is missing"
    if item["type"] == "extra_forbidden":
        known = list(_section(model, item["loc"][:-1]).model_fields) if model else []
        return f"unknown key{suggestion(str(item['loc'][-1]), known)}" + (
            f" (known: {', '.join(known)})" if known else ""
        )
    if item["type"] == "string_pattern_mismatch" and item["loc"][-1] == "device":
        return f"must be auto, cpu, cuda or cuda:N, got {item['input']!r}"
    if item["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return f"must be a table, got {item['input']!r}"
    text = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    given = item["input"]
    shown = "" if isinstance(given, dict | BaseModel) else f", got {given!r}"
    return f"must be {text}{shown}" if item["msg"].startswith("Input should be ") else f"{text}{shown}"


def _section(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel))
    return model
