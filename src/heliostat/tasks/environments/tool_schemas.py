"""JSON schemas of tools from their signatures and docstrings, and the check of arguments against them.

The schemas are those of ``transformers.utils.get_json_schema``, which chat templates render. That function takes a
second to import, and an environment process needs no other part of transformers.

Left out: parsing and running calls (``tools``).
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_TYPES: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    tuple: "array",
    dict: "object",
    type(None): "null",
}
_ACCEPTS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (dict,),
    "null": (type(None),),
}
_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Yields|Raises|Examples?|Notes?)\s*:\s*$")
_ARGUMENT = re.compile(r"^\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")


def schema_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the JSON schema of a tool.

    Args:
        function: a function or bound method with a docstring and a type for every parameter; Google-style ``Args``
            become descriptions.

    Raises:
        ValueError: the docstring, a type or a description is missing, or a type has no JSON form; one sentence.
    """
    name = getattr(function, "__name__", type(function).__name__)
    summary, described, returned = _read_docstring(name, inspect.getdoc(function))
    hints = _hints(name, function)
    properties: dict[str, Any] = {}
    required = []
    for parameter in _parameters(name, function):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ValueError(f"tool '{name}' takes '{parameter}', but a model calls it by argument names")
        if parameter.name not in hints:
            raise ValueError(f"tool '{name}' needs a type for '{parameter.name}', like {parameter.name}: str")
        if parameter.name not in described:
            raise ValueError(f"tool '{name}' needs a line '{parameter.name}: …' under 'Args:' in its docstring")
        properties[parameter.name] = _type_schema(name, hints[parameter.name]) | {
            "description": described[parameter.name]
        }
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties} | ({"required": required} if required else {})
    declared: dict[str, Any] = {"name": name, "description": summary, "parameters": parameters}
    if hints.get("return", type(None)) is not type(None):
        declared["return"] = _type_schema(name, hints["return"]) | ({"description": returned} if returned else {})
    return {"type": "function", "function": declared}


def find_mismatch(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """Return why ``arguments`` do not fit a tool's ``parameters`` schema, in a few words; empty if they do."""
    properties = parameters["properties"]
    for name in arguments:
        if name not in properties:
            return f"no argument '{name}'; it takes: {', '.join(properties) or 'none'}"
    for name in parameters.get("required", ()):
        if name not in arguments:
            return f"argument '{name}' is missing"
    for name, value in arguments.items():
        if not fits(value, properties[name]):
            return f"argument '{name}' must be {describe_type(properties[name])}"
    return ""


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Return whether a JSON value has the type that ``schema`` asks for."""
    if "anyOf" in schema:
        return any(fits(value, member) for member in schema["anyOf"])
    if value is None and schema.get("nullable"):
        return True
    if "enum" in schema:
        return any(type(value) is type(choice) and value == choice for choice in schema["enum"])
    if not any(_has_type(value, name) for name in _names(schema)):
        return "type" not in schema
    if isinstance(value, list | tuple):
        if "prefixItems" in schema:
            items = schema["prefixItems"]
            return len(value) == len(items) and all(map(fits, value, items))
        return all(fits(item, schema.get("items", {})) for item in value)
    if isinstance(value, dict):
        return all(fits(item, schema.get("additionalProperties", {})) for item in value.values())
    return True


def describe_type(schema: Mapping[str, Any]) -> str:
    """Return the type of a schema in words, for a message to the model."""
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(map(describe_type, schema["anyOf"]))
    return " or ".join([*_names(schema), *(["null"] if schema.get("nullable") else [])])


def _has_type(value: Any, name: str) -> bool:
    if isinstance(value, bool):  # a bool is an int in Python, and not in JSON
        return name == "boolean"
    return isinstance(value, _ACCEPTS[name])


def _names(schema: Mapping[str, Any]) -> list[str]:
    declared = schema.get("type", [])
    return [declared] if isinstance(declared, str) else list(declared)


def _parameters(name: str, function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError as error:
        raise ValueError(f"tool '{name}' has no signature; call it in a function of your own") from error


def _hints(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except Exception as error:
        raise ValueError(f"tool '{name}' has a type that cannot be read: {error}") from error


def _type_schema(name: str, annotation: Any) -> dict[str, Any]:
    origin, members = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return {}
    if origin is Literal:
        kinds = {_TYPES[type(choice)] for choice in members}
        return {"type": kinds.pop() if len(kinds) == 1 else sorted(kinds), "enum": list(members)}
    if origin in (Union, types.UnionType):
        return _union_schema(name, members)
    if (origin or annotation) not in _TYPES:
        raise ValueError(f"tool '{name}': {annotation} has no JSON form; use str, int, float, bool, list or dict")
    schema: dict[str, Any] = {"type": _TYPES[origin or annotation]}
    if origin is list or (origin is tuple and members[-1] is Ellipsis):
        schema["items"] = _type_schema(name, members[0])
    elif origin is tuple:
        schema["prefixItems"] = [_type_schema(name, member) for member in members]
    elif origin is dict:
        schema["additionalProperties"] = _type_schema(name, members[1])
    return schema


def _union_schema(name: str, members: Iterable[Any]) -> dict[str, Any]:
    schemas = [_type_schema(name, member) for member in members if member is not type(None)]
    nullable = {"nullable": True} if type(None) in members else {}
    if len(schemas) == 1:
        return schemas[0] | nullable
    if all(schema.keys() == {"type"} for schema in schemas):
        return {"type": sorted(schema["type"] for schema in schemas)} | nullable
    return {"anyOf": schemas} | nullable


def _read_docstring(name: str, text: str | None) -> tuple[str, dict[str, str], str]:
    """Return the description, the arguments' descriptions, and that of the result."""
    if not text:
        raise ValueError(f"tool '{name}' needs a docstring: the model reads it")
    parts: dict[str, list[str]] = {"": []}
    section = ""
    for line in text.splitlines():
        if heading := _SECTION.match(line):
            section = heading[1]
            parts[section] = []
        else:
            parts[section].append(line)
    arguments: dict[str, str] = {}
    current = ""
    for line in inspect.cleandoc("\n".join(["", *_arguments(parts)])).splitlines():
        if (found := _ARGUMENT.match(line)) and not line.startswith(" "):
            current = found[1]
            arguments[current] = found[2].strip()
        elif current and line.strip():
            arguments[current] = f"{arguments[current]} {line.strip()}"
    returned = " ".join(" ".join(parts.get("Returns", [])).split())
    return "\n".join(parts[""]).strip(), arguments, returned


def _arguments(parts: Mapping[str, list[str]]) -> list[str]:
    return next((parts[name] for name in ("Args", "Arguments", "Parameters") if name in parts), [])
