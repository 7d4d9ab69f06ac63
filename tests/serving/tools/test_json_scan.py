"""A JSON object in parts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medusa_trt.serving.tools.json_scan import ObjectScan

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=st.dictionaries(st.text(), JSON, max_size=4), rest=st.text(), data=st.data())
def test_members_and_end_are_found_wherever_the_text_is_cut(
    value: dict[str, object], rest: str, data: st.DataObject
) -> None:
    text = json.dumps(value, indent=data.draw(st.sampled_from([None, 2]))) + rest
    scan, left = ObjectScan(), ""
    while text:
        size = data.draw(st.integers(1, len(text)))
        part, text = text[:size], text[size:]
        left += part if scan.is_done else scan.push(part)
    assert scan.is_done and left == rest
    assert {key: json.loads(member) for key, member in scan.members.items()} == value


def test_an_open_member_grows() -> None:
    scan = ObjectScan()
    scan.push('{"a": 1, "b": {"c": "x')
    assert scan.members == {"a": "1", "b": '{"c": "x'} and scan.open_key == "b"


@pytest.mark.parametrize("text", ["[1]", "x", '"{"'])
def test_other_values_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no JSON object"):
        ObjectScan().push(text)
