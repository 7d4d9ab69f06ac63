"""Options of a TensorRT build, and the mistakes that they refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medusa_trt.errors import BuildError
from medusa_trt.export.tensorrt.options import BuildOptions, count_cache_rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge_tree": True, "strip_weights": True}, "out --merge-tree or --strip-weights"),
        ({"optimization_level": 9}, "optimization_level is 9: it must be between 0 and 5"),
        ({"max_batch_size": 0}, "max_batch_size is 0: it must be between 1 and 256"),
        ({"compute_capabilities": ("8.9", "86")}, r"capability '86' is not of the form 8\.6"),
    ],
)
def test_mistakes_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        BuildOptions(**options)  # type: ignore[arg-type]


@given(st.integers(1, 1 << 20), st.integers(1, 128))
def test_the_rows_of_a_cache_are_a_multiple_of_16(max_length: int, max_tree_nodes: int) -> None:
    num_rows = count_cache_rows(max_length, max_tree_nodes)
    assert num_rows % 16 == 0 and 0 <= num_rows - max_length - max_tree_nodes < 16
