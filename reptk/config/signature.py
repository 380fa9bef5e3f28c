"""A factory's signature as the schema of its arguments: checked, completed with defaults, explained in plain words."""

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


class CheckedArguments(NamedTuple):
    """The result of `check`.

    complete: the arguments, completed with the factory's defaults.
    unknown: names that the factory does not take.
    problems: what is wrong with the others.
    """

    complete: dict[str, Any]
    unknown: list[str]
    problems: list[Problem]


def check(factory: Callable[..., Any], arguments: Mapping[str, Any], supplied: Sequence[str] = ()) -> CheckedArguments:
    """Check arguments against a factory's signature, as plain values that TOML can hold.

    Args:
        factory: class or function.
        arguments: by name.
        supplied: parameters that are filled in elsewhere.
    """
    model = _pydantic_model(factory, supplied)
    takes_any = model.model_config["extra"] == "allow"
    accepted = names(factory, supplied)
    unknown = [] if takes_any else [name for name in arguments if name not in accepted]
    known = {name: value for name, value in arguments.items() if name not in unknown}
    try:
        validated = model.model_validate(known)
    except ValidationError as error:
        return CheckedArguments(known, unknown, problems_of(error))
    plain = validated.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return CheckedArguments(_with_defaults(factory, supplied, plain), unknown, [])


def names(factory: Callable[..., Any], supplied: Sequence[str] = ()) -> list[str]:
    """The names of a factory's parameters, without those that are `supplied` elsewhere."""
    parameters = _signature(factory).parameters
    return [name for name, parameter in parameters.items() if parameter.kind in _NAMED_KINDS and name not in supplied]


def problems_of(error: ValidationError, model: type[BaseModel] | None = None) -> list[Problem]:
    """Every problem of a pydantic error; with the `model`, an unknown key is answered with the nearest valid one."""
    return [(_dotted(item["loc"]), _message(item, model)) for item in error.errors(include_url=False)]


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing."""
    close = nearest(name, known)
    if not close:
        return ""
    return f"; did you mean {close[0]!r}?"


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
    signature = _signature(factory)
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    fields: dict[str, Any] = {}
    for number, name in enumerate(names(factory, supplied)):
        parameter = signature.parameters[name]
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        # Fields are numbered and have an alias, since a parameter may have a name that pydantic reserves.
        fields[f"field_{number}"] = (_checkable_type(parameter.annotation), Field(default, alias=name))
    config = ConfigDict(
        extra="allow" if takes_any else "forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        arbitrary_types_allowed=True,
    )
    return create_model("Arguments", __config__=config, **fields)


def _checkable_type(annotation: Any) -> Any:
    """The annotation if pydantic can check it, else `Any`."""
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return Any
    try:
        config = ConfigDict(arbitrary_types_allowed=True)
        create_model("Trial", __config__=config, value=(annotation, ...)).model_rebuild(raise_errors=True)
    except Exception:
        return Any
    return annotation


def _with_defaults(
    factory: Callable[..., Any], supplied: Sequence[str], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments and the defaults of the others, in the signature's order.

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


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)


def _message(item: Any, model: type[BaseModel] | None) -> str:
    """One of pydantic's errors in plain words."""
    kind, value = item["type"], item["input"]
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return _unknown_key(item["loc"], model)
    if kind == "string_pattern_mismatch" and item["loc"][-1] == "device":
        return f"must be auto, cpu, cuda or cuda:N, got {value!r}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"must be a table, got {value!r}"
    text = item["msg"].removeprefix("Value error, ")
    is_range = text.startswith("Input should be ")
    if is_range:
        text = f"must be {text.removeprefix('Input should be ')}"
    is_table = isinstance(value, dict | BaseModel)
    return text if is_table else f"{text}, got {value!r}"


def _unknown_key(location: tuple[int | str, ...], model: type[BaseModel] | None) -> str:
    known = list(_section(model, location[:-1]).model_fields) if model else []
    message = f"unknown key{suggestion(str(location[-1]), known)}"
    return f"{message} (known: {', '.join(known)})" if known else message


def _section(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The model of the table at a dotted place."""
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel))
    return model
