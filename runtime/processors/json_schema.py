"""Rewrites JSON schemas into equal or stricter ones that llguidance takes.

llguidance refuses keywords that it does not know, even where they demand nothing, and formats that
it does not know. And it lets a reply go on to a further property where no name is left for one.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

Schema = dict[str, Any]

_SCHEMA_MAPS = {"properties", "patternProperties", "$defs", "definitions"}
"""Keywords that hold schemas by name."""

_NOT_SCHEMAS = {"const", "default", "enum", "examples", "x-guidance"}
"""Keywords that hold any values, which may look like schemas."""

_DEMANDS_NOTHING: dict[str, tuple[object, ...]] = {
    "uniqueItems": (False,),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "propertyNames": (True, {}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "not": (False,),
}
"""Values of keywords with which every text conforms."""

_NEEDS_ANOTHER = {
    "if": {"then", "else"},
    "then": {"if"},
    "else": {"if"},
    "minContains": {"contains"},
    "maxContains": {"contains"},
}
"""Keywords that demand nothing unless one of these is beside them."""

_BASE64 = r"^(?:[A-Za-z0-9{0}]{{4}})*(?:[A-Za-z0-9{0}]{{2}}==|[A-Za-z0-9{0}]{{3}}=)?$"
_UUID = r"^[0-9a-f]{{8}}-[0-9a-f]{{4}}-{}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}$"
_POINTER = r"(?:/(?:[^~/]|~[01])*)*$"

_FREE_FORMATS = {"password", "binary", "path", "file-path", "directory-path"}
"""Formats of OpenAPI and Pydantic that any text has."""

_NARROWER_FORMATS = {
    "ipv4network": "ipv4",
    "ipv4interface": "ipv4",
    "ipv6network": "ipv6",
    "ipv6interface": "ipv6",
    "ipvanyaddress": "ipv4",
    "ipvanynetwork": "ipv4",
    "ipvanyinterface": "ipv4",
    "idn-email": "email",
    "name-email": "email",
    "idn-hostname": "hostname",
    "url": "uri",
    "iri": "uri",
    "uri-reference": "uri",
    "iri-reference": "uri",
    "multi-host-uri": "uri",
}
"""A format that llguidance has, whose texts all are texts of the other format."""

_FORMAT_PATTERNS = {
    "base64": _BASE64.format("+/"),
    "byte": _BASE64.format("+/"),
    "base64url": _BASE64.format("_-"),
    "color": "^#[0-9a-fA-F]{6}$",
    "fraction": "^-?[0-9]{1,18}/[1-9][0-9]{0,17}$",
    "json-pointer": "^" + _POINTER,
    "relative-json-pointer": "^(?:0|[1-9][0-9]{0,8})(?:#$|" + _POINTER + ")",
    **{f"uuid{version}": _UUID.format(version) for version in range(1, 9)},
}
"""Patterns of formats of JSON schema, OpenAPI and Pydantic that llguidance lacks."""

_DECIMAL = re.compile(
    r"\^\(\?!\^\[-\+\.\]\*\$\)\[\+-\]\?0\*"
    r"(?:\(\?:\\d\{0,(?P<whole>\d+)\}\|\(\?=\[\\d\.\]\{1,(?P<chars>\d+)\}0\*\$\))?"
    r"\\d(?:\*|\{0,\d+\})\\\.\??\\d(?:\*|\{0,(?P<places>\d+)\})(?:0\*)?\$\)?"
)
"""The patterns of Pydantic 2.12 and 2.13 for `Decimal`, whose look-around llguidance refuses."""

_DECIMAL_DIGITS = 20
"""Digits before and after the point of a decimal without limits."""


def simplify_schema(schema: Any, has_names: Callable[[Schema], bool]) -> Any:
    """Rewrites a schema so that llguidance takes it; what it cannot enforce stays.

    Args:
        schema: a JSON schema as Python values, draft 2020-12.
        has_names: whether an object that conforms to a schema can have further properties besides
            the required ones.
    """
    return _Simplifier(schema, has_names).simplify(schema)


class _Simplifier:
    def __init__(self, root: Any, has_names: Callable[[Schema], bool]) -> None:
        self._root, self._has_names = root, has_names

    def simplify(self, schema: Any) -> Any:
        if isinstance(schema, list):
            return [self.simplify(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        simple = {
            key: self._simplify_value(key, value)
            for key, value in schema.items()
            if value not in _DEMANDS_NOTHING.get(key, ())
            and not (key in _NEEDS_ANOTHER and schema.keys().isdisjoint(_NEEDS_ANOTHER[key]))
        }
        _replace_format(simple)
        _replace_decimal(simple)
        self._replace_property_names(simple)
        self._fold_patterns(simple)
        return simple

    def _simplify_value(self, key: str, value: Any) -> Any:
        if key in _NOT_SCHEMAS:
            return value
        if key in _SCHEMA_MAPS and isinstance(value, dict):
            return {name: self.simplify(inner) for name, inner in value.items()}
        return self.simplify(value)

    def _replace_property_names(self, schema: Schema) -> None:
        """Lists the names that `propertyNames` allows as properties, or as a pattern of names."""
        names = schema.get("propertyNames")
        if not isinstance(names, dict) or schema.keys() & {"properties", "patternProperties"}:
            return
        names, value = self._resolve(names), schema.get("additionalProperties", True)
        listed = names.get("enum", [names["const"]] if "const" in names else None)
        if listed is not None:
            schema["properties"] = {name: value for name in listed if isinstance(name, str)}
        elif isinstance(pattern := _pattern_of_names(names), str):
            schema["patternProperties"] = {pattern: value}
        else:
            return
        schema["additionalProperties"] = False
        del schema["propertyNames"]

    def _resolve(self, schema: Schema) -> Schema:
        """The schema that a `$ref` names in the same document."""
        reference = schema.get("$ref", "")
        if not isinstance(reference, str) or not reference.startswith("#/$defs/"):
            return schema
        target = self._root.get("$defs", {}).get(reference.removeprefix("#/$defs/"))
        return target if isinstance(target, dict) else schema

    def _fold_patterns(self, schema: Schema) -> None:
        """Moves a pattern into the properties where it matches no other name than theirs.

        llguidance would let the reply go on to a further property, and then know no name for it.
        """
        patterns, properties = schema.get("patternProperties"), schema.get("properties", {})
        if not isinstance(patterns, dict) or not isinstance(properties, dict):
            return
        names = list(dict.fromkeys([*properties, *schema.get("required", ())]))
        patterns = dict(patterns)
        for pattern, value in list(patterns.items()):
            if not names or self._goes_on(names, pattern):
                continue
            for name in names:
                if self._goes_on([other for other in names if other != name], pattern):
                    properties = properties | {name: {"allOf": [properties.get(name, True), value]}}
            del patterns[pattern]
        schema |= {"properties": properties, "patternProperties": patterns}

    def _goes_on(self, names: Sequence[str], pattern: str) -> bool:
        """Whether the pattern matches another name than these."""
        schema = {
            "type": "object",
            "properties": {name: {"const": None} for name in names},
            "required": names,
            "patternProperties": {pattern: True},
            "additionalProperties": False,
        }
        return self._has_names(schema)


def _replace_format(schema: Schema) -> None:
    """Replaces a format that llguidance lacks."""
    name = schema.get("format")
    if not isinstance(name, str):
        return
    if name in _NARROWER_FORMATS:
        schema["format"] = _NARROWER_FORMATS[name]
    elif name in _FORMAT_PATTERNS:
        del schema["format"]
        pattern = {"type": "string", "pattern": _FORMAT_PATTERNS[name]}
        schema["allOf"] = [*schema.get("allOf", ()), pattern]
    elif name in _FREE_FORMATS:
        del schema["format"]


def _replace_decimal(schema: Schema) -> None:
    """Replaces the pattern of Pydantic's decimals by one without look-around."""
    match = _DECIMAL.fullmatch(str(schema.get("pattern")))
    if match is None:
        return
    whole = int(match["whole"] or _DECIMAL_DIGITS)
    places = int(match["places"] or match["whole"] or _DECIMAL_DIGITS)
    # Pydantic counts no digit before the point of 0.5, but one of 0.
    digits = f"(?:0|[1-9][0-9]{{0,{whole - 1}}})" if whole else "0"
    fraction = rf"(?:\.[0-9]{{1,{places}}}){'?' * bool(whole)}" if places else ""
    schema["pattern"] = f"^-?{digits}{fraction}$"
    if match["chars"] and not match["places"]:
        limit = {"type": "string", "pattern": f"^-?[0-9.]{{1,{match['chars']}}}$"}
        schema["allOf"] = [*schema.get("allOf", ()), limit]


def _pattern_of_names(names: Schema) -> str | None:
    """The pattern that says the same as a schema of names; None if there is none."""
    rules = names.keys() & {"pattern", "minLength", "maxLength", "format", "allOf", "anyOf", "not"}
    if rules == {"pattern"}:
        return str(names["pattern"])
    if rules and rules <= {"minLength", "maxLength"}:
        return f"^(?s:.{{{names.get('minLength', 0)},{names.get('maxLength', '')}}})$"
    return None
