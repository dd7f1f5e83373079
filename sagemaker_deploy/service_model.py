"""Validates inputs of SageMaker's API by botocore's service model.

The service model, from which boto3 builds its clients, has each operation's fields, their location
and their constraints. boto3 itself checks only types and minima; the service checks the rest, and
so does this module. Knows nothing of endpoints or processes.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

CONTROL, RUNTIME = "sagemaker", "sagemaker-runtime"
CUSTOM_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
Lookup = Callable[[str], str | None]
# The patterns use Java's syntax; these are the classes that Python writes differently.
JAVA_CLASSES = {r"\p{ASCII}": r"[\x00-\x7f]", r"[\p{Print}]": r"[\x20-\x7e]", r"\z": r"\Z"}


class ShapeError(ValueError):
    """A value that the service would reject; the text is the service's message."""


@functools.cache
def operation(service: str, name: str) -> Any:
    """Return botocore's model of an operation. Raises KeyError for an unknown operation."""
    model = _service(service)
    if name not in model.operation_names:
        raise KeyError(name)
    return model.operation_model(name)


@functools.cache
def _service(service: str) -> Any:
    import botocore.session  # slow, and only some commands need the model

    return botocore.session.get_session().get_service_model(service)


def action(operation_name: str) -> str:
    """Return the API's name of an operation, as in CreateModel, from boto3's: create_model."""
    return "".join(word.capitalize() for word in operation_name.split("_"))


def allowed_values(service: str, shape: str) -> tuple[str, ...]:
    """Return the values of an enumeration."""
    return tuple(_service(service).shape_for(shape).enum)


def header_names(service: str, name: str) -> dict[str, str]:
    """Return the header name of each input field that an operation sends as a header."""
    members = operation(service, name).input_shape.members
    return {
        field: shape.serialization["name"]
        for field, shape in members.items()
        if shape.serialization.get("location") == "header"
    }


def read_headers(service: str, name: str, header: Lookup) -> dict[str, Any]:
    """Read and check the header fields of a request. Raises ShapeError for the first bad one."""
    members = operation(service, name).input_shape.members
    values: dict[str, Any] = {}
    for field, header_name in header_names(service, name).items():
        text = header(header_name)
        if text is None:
            continue
        values[field] = _whole_number(field, text) if _is_number(members[field]) else text
        check(values[field], members[field], field)
    return values


def check_input(service: str, name: str, params: Mapping[str, Any]) -> None:
    """Check a whole input as the service does. Raises ShapeError."""
    import botocore.validate

    shape = operation(service, name).input_shape
    report = botocore.validate.ParamValidator().validate(params, shape)
    if report.has_errors():
        raise ShapeError(report.generate_report().replace("\n", "; "))
    check(params, shape, "")


def check(value: Any, shape: Any, path: str) -> None:
    """Check lengths, ranges, patterns and enums recursively. Raises ShapeError."""
    if shape.type_name == "structure":
        for field, child in value.items():
            check(child, shape.members[field], f"{path}.{field}" if path else field)
    elif shape.type_name == "list":
        _check_size(len(value), shape, path, "member count")
        for index, child in enumerate(value, 1):
            check(child, shape.member, f"{path}.{index}.member")
    elif shape.type_name == "map":
        _check_size(len(value), shape, path, "entry count")
        for key, child in value.items():
            check(key, shape.key, f"{path}.{key}.key")
            check(child, shape.value, f"{path}.{key}")
    elif shape.type_name == "string":
        _check_text(value, shape, path)
    elif _is_number(shape) or shape.type_name in ("float", "double"):
        _check_size(value, shape, path, "value")


def only_known(values: Mapping[str, Any], service: str, name: str) -> dict[str, Any]:
    """Select the values that are output fields of an operation."""
    members = operation(service, name).output_shape.members
    return {field: value for field, value in values.items() if field in members}


def _check_text(value: str, shape: Any, path: str) -> None:
    _check_size(len(value), shape, path, "length")
    allowed = shape.metadata.get("enum")
    if allowed and value not in allowed:
        nearest = ", ".join(allowed) if len(allowed) <= 12 else f"{len(allowed)} known values"
        raise _failure(value, path, f"Member must satisfy enum value set: [{nearest}]")
    pattern = _pattern(shape.metadata.get("pattern", ""))
    if value.startswith("file:///") and pattern and "s3" in pattern.pattern:
        return  # local files are accepted where the service accepts s3://
    if pattern and not pattern.fullmatch(value):
        raise _failure(
            value, path, f"Member must satisfy regular expression pattern: {pattern.pattern}"
        )


def _check_size(size: float, shape: Any, path: str, noun: str) -> None:
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    if least is not None and size < least:
        raise _failure(size, path, f"Member must have {noun} greater than or equal to {least}")
    if most is not None and size > most:
        raise _failure(size, path, f"Member must have {noun} less than or equal to {most}")


def _failure(value: object, path: str, rule: str) -> ShapeError:
    return ShapeError(
        "1 validation error detected: "
        f"Value {str(value)[:200]!r} at {path!r} failed to satisfy constraint: {rule}"
    )


def _is_number(shape: Any) -> bool:
    return shape.type_name in ("integer", "long")


def _whole_number(field: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ShapeError(f"{field} must be a whole number, not {text!r}") from None


@functools.cache
def _pattern(java: str) -> "re.Pattern[str] | None":
    for java_class, python_class in JAVA_CLASSES.items():
        java = java.replace(java_class, python_class)
    try:
        return re.compile(java, re.DOTALL) if java else None
    except re.error:  # syntax that Python lacks: skip the check rather than reject valid values
        return None
