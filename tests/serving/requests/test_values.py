"""Values of fields: null as a default, fields that this server does not have, exact types."""

from typing import Annotated, Any

import pytest
from pydantic import ValidationError

from medusa_trt.serving.requests.values import Body, Flag, OrNull, Unsupported


class Inner(Body):
    depth: int


class Example(Body):
    size: Annotated[int, OrNull()] = 3
    flag: Flag = True
    inner: Inner | None = None
    audio: Annotated[Any, Unsupported("speak yourself")] = None


def test_null_gives_the_default_and_is_in_the_schema() -> None:
    read = Example.model_validate({"size": None, "flag": None, "audio": None})
    assert read == Example() == Example.model_validate({})
    assert (read.size, read.flag) == (3, True)
    assert Example.model_validate({"size": 4, "flag": False}).model_dump()["size"] == 4
    schema = Example.model_json_schema()["properties"]
    assert schema["size"]["anyOf"] == [{"type": "integer"}, {"type": "null"}]
    assert schema["flag"]["anyOf"] == [{"type": "boolean"}, {"type": "null"}]


@pytest.mark.parametrize(
    ("body", "place", "kind"),
    [
        ({"size": "4"}, ("size",), "int_type"),
        ({"size": 4.0}, ("size",), "int_type"),
        ({"size": True}, ("size",), "int_type"),
        ({"flag": 1}, ("flag",), "bool_type"),
        ({"other": 1}, ("other",), "extra_forbidden"),
        ({"inner": {"depth": 1, "x": 2}}, ("inner", "x"), "extra_forbidden"),
        ({"audio": {}}, ("audio",), "unsupported"),
        ({"audio": False}, ("audio",), "unsupported"),
    ],
)
def test_other_values_are_refused_at_their_place(
    body: dict[str, Any], place: tuple[str, ...], kind: str
) -> None:
    with pytest.raises(ValidationError) as raised:
        Example.model_validate(body)
    (error,) = raised.value.errors()
    assert (error["loc"], error["type"]) == (place, kind)


def test_a_field_that_is_not_there_is_refused_with_advice() -> None:
    with pytest.raises(ValidationError, match="does not have this field: speak yourself"):
        Example.model_validate({"audio": "loud"})
