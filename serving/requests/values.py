"""Kinds of values that fields of requests have, beyond those of pydantic."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic_core import CoreSchema, PydanticCustomError, PydanticUseDefault, core_schema


class Body(BaseModel):
    """A JSON object whose values have exactly the types of its fields."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class OrNull:
    """Marks a field that has its default where the client gives null, as in OpenAI's API."""

    def __get_pydantic_core_schema__(self, kind: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Lets the check of the values follow that of null."""
        return core_schema.no_info_before_validator_function(_leave_out_null, handler(kind))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describes the values and null."""
        return {"anyOf": [handler(schema), {"type": "null"}]}


def _leave_out_null(value: object) -> object:
    if value is None:
        raise PydanticUseDefault
    return value


Flag = Annotated[bool, OrNull()]
"""True or false; null is the default."""


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Marks a field of OpenAI's API that this server does not have; only null is no error.

    Attributes:
        advice: what to do in its place.
    """

    advice: str = "leave it out"

    def __get_pydantic_core_schema__(self, kind: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Lets an error with the advice follow all other values."""
        return core_schema.no_info_before_validator_function(self._check, handler(kind))

    def _check(self, value: object) -> object:
        if value is not None:
            context: Mapping[str, Any] = {"advice": self.advice}
            message = "this server does not have this field: {advice}"
            raise PydanticCustomError("unsupported", message, dict(context))
        return None
