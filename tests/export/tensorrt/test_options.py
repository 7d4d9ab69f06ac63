"""Options of a TensorRT build, and the mistakes that they refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medusa_trt.cli.main import main
from medusa_trt.errors import BuildError
from medusa_trt.export.tensorrt.options import BuildOptions, count_cache_rows
from medusa_trt.runtime.bundle import Bundle


def test_the_command_reports_mistakes(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(tiny_bundle.path)]) == 2
    assert "no engines are built for ort-cpu" in capsys.readouterr().err
    assert main(["build", str(tiny_bundle.path), "--target", "tensorrt"]) == 2
    assert "the bundle was exported for ort-cpu: export" in capsys.readouterr().err
    assert main(["build", str(tiny_bundle.path), "--merge-tree", "--strip-weights"]) == 2
    assert "leave out --merge-tree or --strip-weights" in capsys.readouterr().err
    assert main(["build", str(tiny_bundle.path), "--optimization-level", "9"]) == 2
    assert "--optimization-level is 9: it must be between 0 and 5" in capsys.readouterr().err


@given(st.integers(1, 1 << 20), st.integers(1, 128))
def test_the_rows_of_a_cache_are_a_multiple_of_16(max_length: int, max_tree_nodes: int) -> None:
    num_rows = count_cache_rows(max_length, max_tree_nodes)
    assert num_rows % 16 == 0 and 0 <= num_rows - max_length - max_tree_nodes < 16


def test_a_compute_capability_has_a_form() -> None:
    with pytest.raises(BuildError, match=r"capability '86' is not of the form 8\.6"):
        BuildOptions(compute_capabilities=("8.9", "86"))
