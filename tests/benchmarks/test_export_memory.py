"""The memory of a process, and the heads that an export is measured with."""

import os
from pathlib import Path

from export_memory import NUM_HEADS, make_heads, read_memory_bytes
from safetensors.torch import load_file
from transformers import LlamaConfig


def test_memory_is_read_of_a_running_process() -> None:
    sizes = read_memory_bytes(os.getpid(), ["VmHWM", "RssAnon"])
    assert sizes["VmHWM"] >= sizes["RssAnon"] > 10**6
    assert read_memory_bytes(2**22 + 1, ["VmHWM"]) == {}


def test_heads_have_the_shape_of_the_config(tmp_path: Path) -> None:
    config = LlamaConfig(hidden_size=8, vocab_size=30, num_attention_heads=2)
    make_heads(tmp_path / "heads", config, True)
    tensors = load_file(tmp_path / "heads" / "medusa_lm_head.safetensors")
    assert len(tensors) == 3 * NUM_HEADS and tensors["3.1.weight"].shape == (30, 8)
