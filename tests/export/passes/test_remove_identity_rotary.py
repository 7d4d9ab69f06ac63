"""The removal of rotations by zero, on graphs small enough to read."""

import numpy as np
import pytest
from support.graphs.graph_texts import Arrays, parsed, rewritten

from medusa_trt.export.passes.remove_identity_rotary import RemoveIdentityRotaryPass

ROTARY = """rotary (float[2, 3, 4] x, float[2, 3, 4] half) => (float[2, 3, 4] y) {
    a = Mul(x, cos)
    b = Mul(half, sin)
    c = Add(a, b)
    y = Relu(c)
}"""


def angles(cos: float, sin: float) -> Arrays:
    return {"cos": np.full((1, 1, 4), cos, np.float32), "sin": np.full((1, 1, 4), sin, np.float32)}


def test_a_rotation_by_zero_goes() -> None:
    assert rewritten(parsed(ROTARY, angles(1, 0)), RemoveIdentityRotaryPass()) == {"Relu": 1}


@pytest.mark.parametrize(("cos", "sin"), [(1, 1), (0.5, 0), (0, 0), (0, 1)])
def test_another_rotation_stays(cos: float, sin: float) -> None:
    counts = rewritten(parsed(ROTARY, angles(cos, sin)), RemoveIdentityRotaryPass())
    assert counts == {"Mul": 2, "Add": 1, "Relu": 1}


def test_a_rotation_of_some_dimensions_stays() -> None:
    weights = angles(1, 0)
    weights["cos"][..., 2] = 0.5
    assert rewritten(parsed(ROTARY, weights), RemoveIdentityRotaryPass())["Add"] == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("half) =>", "half, float[4] cos) =>"),
        ("x, float[2, 3, 4] half", "x, float[4] sin, float[2, 3, 4] half"),
    ],
)
def test_a_rotation_by_a_computed_angle_stays(old: str, new: str) -> None:
    text = ROTARY.replace(old, new)
    weights = {name: array for name, array in angles(1, 0).items() if f"float[4] {name}" not in new}
    assert rewritten(parsed(text, weights), RemoveIdentityRotaryPass())["Add"] == 1


def test_a_product_that_widens_its_input_stays() -> None:
    text = ROTARY.replace("[2, 3, 4] x", "[2, 3, 1] x")
    assert rewritten(parsed(text, angles(1, 0)), RemoveIdentityRotaryPass())["Add"] == 1


def test_a_rotation_that_is_an_output_keeps_its_name() -> None:
    text = ROTARY.replace("c = Add", "y = Add").replace("    y = Relu(c)\n", "")
    assert rewritten(parsed(text, angles(1, 0)), RemoveIdentityRotaryPass())["Add"] == 1
