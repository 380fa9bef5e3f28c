"""The arguments of a part, checked against the signature of its factory by pydantic and completed with its defaults."""

import inspect
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic_core import to_jsonable_python

from reptk.config.registry import nearest

REQUIRED = inspect.Parameter.empty
"""What `defaults` has in place of a default that a parameter does not have."""

Problem = tuple[str, str]
"""A dotted key and what is wrong with it."""


class CheckedArguments(NamedTuple):
    """The result of `check`.

    complete: the arguments, completed with the factory's defaults. If there are problems, without the defaults.
    unknown: names of arguments that the factory has no parameter for.
    problems: what is wrong with the other arguments.
    """

    complete: dict[str, Any]
    unknown: list[str]
    problems: list[Problem]


def check(factory: Callable[..., Any], arguments: Mapping[str, Any], supplied: Sequence[str] = ()) -> CheckedArguments:
    """Check arguments against a factory's signature, and return them as plain values that TOML can hold.

    Args:
        factory: class or function.
        arguments: by name.
        supplied: parameters whose values are not in `arguments`.
    """
    model = _pydantic_model(factory, supplied)
    accepted = names(factory, supplied)
    unknown = []
    if model.model_config["extra"] == "forbid":
        unknown = [name for name in arguments if name not in accepted]
    known = {name: value for name, value in arguments.items() if name not in unknown}
    try:
        validated = model.model_validate(known)
    except ValidationError as error:
        return CheckedArguments(known, unknown, problems_of(error))
    # Unset ones are left out: their defaults are added below, where those that TOML cannot hold are sorted out.
    plain = validated.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return CheckedArguments(_with_defaults(factory, supplied, plain), unknown, [])


def names(factory: Callable[..., Any], supplied: Sequence[str] = ()) -> list[str]:
    """Return the names of a factory's parameters, without those in `supplied`."""
    parameters = _signature(factory).parameters
    return [name for name, parameter in parameters.items() if parameter.kind in _NAMED_KINDS and name not in supplied]


def defaults(factory: Callable[..., Any], supplied: Sequence[str] = ()) -> dict[str, Any]:
    """Return the default of each parameter, in their order; `REQUIRED` for one without a default."""
    parameters = _signature(factory).parameters
    return {name: parameters[name].default for name in names(factory, supplied)}


def types_of_parameter(factory: Callable[..., Any], name: str) -> list[Any]:
    """Return the type of a factory's parameter, in a list that is empty if there is no such parameter or no type."""
    parameter = _signature(factory).parameters.get(name)
    if parameter is None or parameter.annotation is inspect.Parameter.empty:
        return []
    return [_checkable_type(parameter.annotation)]


def takes_float(factory: Callable[..., Any], name: str) -> bool:
    """Return whether a factory has this parameter and it is a float, by its type or, if it has none, by its default."""
    parameter = _signature(factory).parameters.get(name)
    if parameter is None:
        return False
    if parameter.annotation is inspect.Parameter.empty:
        return isinstance(parameter.default, float)
    return _includes_float(parameter.annotation)


def types_of_field(model: type[BaseModel], keys: Sequence[str]) -> list[Any]:
    """Return the type of a model's field at a dotted key, in a list that is empty if there is no such field."""
    for key in keys[:-1]:
        if key not in model.model_fields:
            return []
        inner = _models_in(model.model_fields[key].annotation)
        if not inner:
            return []
        model = inner[0]
    if keys[-1] not in model.model_fields:
        return []
    return [model.model_fields[keys[-1]].annotation]


def accepts(expected: Any, value: Any) -> bool:
    """Return whether pydantic accepts a value for a type."""
    try:
        TypeAdapter(expected, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError:
        return False
    except Exception:  # pydantic may raise anything about a type that it does not know; the value is checked later
        return True
    return True


def problems_of(error: ValidationError, model: type[BaseModel] | None = None) -> list[Problem]:
    """Return the problems of a pydantic error; those of unknown keys name the nearest valid one if `model` is passed."""
    return [(_dotted(item["loc"]), _message(item, model)) for item in error.errors(include_url=False)]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` with the nearest known name, or an empty string if none is similar."""
    close = nearest(name, known)
    if not close:
        return ""
    return f"; did you mean {close[0]!r}?"


def _includes_float(annotation: Any) -> bool:
    """Whether a type is float, possibly with bounds, or one of several types of which one is."""
    if annotation is float:
        return True
    if get_origin(annotation) is Annotated:
        return _includes_float(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_includes_float(member) for member in get_args(annotation))
    return False


_NAMED_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _signature(factory: Callable[..., Any]) -> inspect.Signature:
    # A class without an __init__ of its own has nn.Module's __init__(*args, **kwargs), which accepts nothing either. torch is
    # not imported here: it may not be needed, and it may wrap __init__ so that neither its name nor its module identify it.
    torch = sys.modules.get("torch")
    if torch is not None and inspect.isclass(factory) and factory.__init__ is torch.nn.Module.__init__:
        return inspect.Signature()
    try:
        return inspect.signature(factory, eval_str=True)
    except Exception:  # an annotation that only a type checker can resolve
        return inspect.signature(factory)


def _pydantic_model(factory: Callable[..., Any], supplied: Sequence[str]) -> type[BaseModel]:
    """Return a model with a field for each parameter that a recipe sets."""
    signature = _signature(factory)
    extra = "forbid"
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        extra = "allow"
    fields: dict[str, Any] = {}
    for number, name in enumerate(names(factory, supplied)):
        parameter = signature.parameters[name]
        default = parameter.default
        if default is inspect.Parameter.empty:
            default = ...  # pydantic's sign for a required field
        # Fields are numbered and have an alias, since a parameter may have a name that pydantic reserves.
        fields[f"field_{number}"] = (_checkable_type(parameter.annotation), Field(default, alias=name))
    config = ConfigDict(
        extra=extra,
        allow_inf_nan=False,
        protected_namespaces=(),
        arbitrary_types_allowed=True,
    )
    return create_model("Arguments", __config__=config, **fields)


def _checkable_type(annotation: Any) -> Any:
    """Return the annotation if pydantic can check it, else `Any`, which accepts every value."""
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return Any
    try:
        config = ConfigDict(arbitrary_types_allowed=True)
        create_model("Trial", __config__=config, value=(annotation, ...)).model_rebuild(raise_errors=True)
    except Exception:  # pydantic may raise anything about a class that it does not know
        return Any
    return annotation


def _with_defaults(
    factory: Callable[..., Any], supplied: Sequence[str], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments, and the defaults of those that are not set, in the order of the signature.

    A default that TOML cannot hold is left out, so that the factory applies it.
    """
    parameters = _signature(factory).parameters
    complete = {}
    for name in names(factory, supplied):
        if name in arguments:
            complete[name] = arguments[name]
            continue
        try:
            default = to_jsonable_python(parameters[name].default)
            if default is not None:
                tomli_w.dumps({name: default})
        except (ValueError, TypeError):  # PydanticSerializationError and UnicodeDecodeError are ValueErrors
            continue
        complete[name] = default
    return complete | arguments


UNION_TAG = ":"
"""Begins the names of the forms of a field that takes a number or a table; they are no part of its key."""


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location if not str(part).startswith(UNION_TAG))


def _message(item: Any, model: type[BaseModel] | None) -> str:
    """Return one of pydantic's errors in plain words."""
    kind, value = item["type"], item["input"]
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return _unknown_key(item["loc"], model)
    if kind == "string_pattern_mismatch" and item["loc"][-1] == "device":
        return f"must be auto, cpu, cuda, cuda:N or mps, got {value!r}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"must be a table, got {value!r}"
    text = item["msg"].removeprefix("Value error, ")
    if text.startswith("Input should be "):
        text = f"must be {text.removeprefix('Input should be ')}"
    if isinstance(value, dict | BaseModel):  # a whole table would only obscure the message
        return text
    return f"{text}, got {value!r}"


def _unknown_key(location: tuple[int | str, ...], model: type[BaseModel] | None) -> str:
    if model is None:
        return "unknown key"
    known = list(_section(model, location[:-1]).model_fields)
    return f"unknown key{suggestion(str(location[-1]), known)} (known: {', '.join(known)})"


def _section(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the model of the table at a dotted key."""
    for part in location:
        if str(part).startswith(UNION_TAG):
            continue
        model = _models_in(model.model_fields[str(part)].annotation)[0]
    return model


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models among a type and its members: a union with None for an optional table, or with a number."""
    candidates = [annotation]
    for member in get_args(annotation):
        if get_origin(member) is Annotated:
            member = get_args(member)[0]
        candidates.append(member)
    return [item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)]
