"""Options of the server, and the keys that they name."""

from pathlib import Path
from typing import Any

import pytest

from medusa_trt.errors import ServingError
from medusa_trt.serving.options import ServingOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": -1}, "port is -1"),
        ({"port": "80"}, "port is '80'"),
        ({"max_sequences": 0}, "max_sequences is 0"),
        ({"max_queue": -1}, "max_queue is -1"),
        ({"max_body_bytes": 0}, "max_body_bytes is 0"),
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"client_timeout_s": float("nan")}, "client_timeout_s is nan"),
        ({"grace_s": -0.5}, "grace_s is -0.5"),
    ],
)
def test_wrong_values_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ServingError, match=message):
        ServingOptions(**options)
    ServingOptions(port=65535, max_queue=0, grace_s=0)


def test_a_key_is_a_line_of_the_file(tmp_path: Path) -> None:
    assert ServingOptions().read_api_keys() == ()
    path = tmp_path / "keys"
    path.write_text("first\n\n  second-é \n", "utf-8")
    options = ServingOptions(api_key_file=path)
    assert options.read_api_keys() == (b"first", "second-é".encode())
    path.write_text(" \n")
    with pytest.raises(ServingError, match=r"keys holds no key: write one on each line"):
        options.read_api_keys()
    path.unlink()
    with pytest.raises(ServingError, match="keys"):
        options.read_api_keys()
