"""The names that heads have in files."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints.checkpoint_tensors import HIDDEN, check_refused, tensors

from medusa_trt.export.heads.key_layouts import (
    SEQUENTIAL,
    TENSORRT_LLM,
    VLLM,
    HeadKey,
    KeyLayout,
    Part,
)

LAYOUT_NAMES = st.builds(
    HeadKey,
    st.sampled_from(get_args(Part)),
    st.sampled_from(["weight", "bias", "weight_scale", "input_scale"]),
    st.integers(0, 9999),
    st.integers(0, 9999),
)


@settings(max_examples=300)
@given(layout=st.sampled_from([SEQUENTIAL, VLLM, TENSORRT_LLM]), key=LAYOUT_NAMES)
def test_a_layout_reads_the_names_that_it_writes(layout: KeyLayout, key: HeadKey) -> None:
    template = getattr(layout, key.part)
    allowed = {"block": 4, "projection": 2, "root_map": 2, "token_map": 1}.get(key.part, 4)
    kinds = ["weight", "bias", "weight_scale", "input_scale"][:allowed]
    if "unembedding" in key.part:
        kinds.remove("bias")
    if template is None or key.kind not in kinds:
        return
    wanted = key._replace(
        head=key.head if "{head}" in template else None,
        layer=key.layer if "{layer}" in template else None,
    )
    assert layout.parse(layout.make_key(key)) == wanted
    assert layout.parse("x." + layout.make_key(key)) is None
    assert layout.parse(layout.make_key(key) + "\n") is None


@pytest.mark.parametrize(
    "key",
    [
        "lm_head.weight",
        "0.1.linear.scale",
        "0.weight",
        "00.0.linear.weight",
        "٠.0.linear.weight",
        "0.0.linear.weight\n",
        "9" * 5000 + ".0.linear.weight",
        "d2t",
    ],
)
def test_an_unknown_key_is_named(key: str) -> None:
    check_refused(tensors() | {key: torch.zeros(HIDDEN, HIDDEN)}, "no head layout has: .")


def test_the_same_key_with_and_without_a_prefix_is_refused() -> None:
    found = tensors()
    check_refused(
        found | {"medusa_head.0.0.linear.bias": torch.zeros(HIDDEN)}, r"0\.0\.linear\.bias twic"
    )
