"""Configs that contradict the tensors beside them."""

import json
import re
import warnings
from pathlib import Path

import pytest
from support.checkpoints.checkpoint_tensors import save_tensors, tensors
from support.checkpoints.head_files import Tensors, change_config, vllm, write_heads
from support.tiny_models import head_tensors

from medusa_trt.errors import HeadsError
from medusa_trt.export.heads.config_check import find_contradiction
from medusa_trt.export.heads.loading import heads_from_path, load_heads


def test_the_tensors_win_over_the_config(tmp_path: Path) -> None:
    # The released v1.3 configs state 2 heads while the file holds 5.
    save_tensors(tensors(num_heads=5), tmp_path / "medusa_lm_head.pt")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"medusa_num_heads": 2, "medusa_num_layers": 1}))
    with pytest.warns(UserWarning, match="medusa_num_heads 2 where the tensors have 5") as caught:
        assert heads_from_path(tmp_path).num_heads == 5
    assert len(caught) == 1 and "medusa_num_layers" not in str(caught[0].message)
    config.write_text(json.dumps({"medusa_num_heads": 5, "medusa_num_layers": 1, "other": 3}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heads_from_path(tmp_path)
    config.write_text("{")
    with pytest.raises(HeadsError, match=r"config\.json is not JSON"):
        heads_from_path(tmp_path)


def content(**options: int) -> Tensors:
    return head_tensors(**({"num_heads": 2, "num_layers": 1} | options))


CONTRADICTIONS: dict[str, tuple[dict[str, object], str]] = {
    "fasterdecoding": ({"medusa_num_heads": 5}, "medusa_num_heads 5 where the tensors have 2"),
    "tgi-v1": ({"medusa_num_layers": 2}, "medusa_num_layers 2 where the tensors have 1"),
    "vllm": ({"num_hidden_layers": 4}, "num_hidden_layers 4 where the tensors have 1"),
    "tensorrt-llm": ({"num_medusa_heads": 3}, "num_medusa_heads 3 where the tensors have 2"),
    "modelopt": ({"medusa": {"num_medusa_heads": 4}}, r"medusa\.num_medusa_heads 4 where .* 2"),
    "mlc": ({"hidden_size": 65, "vocab_size": 1}, r"hidden_size 65 .* 64 and vocab_size 1 .* 300"),
    "rtp-llm": (
        {"medusa_config": {"medusa_num_layers": 7}},
        r"medusa_config\.medusa_num_layers 7 where",
    ),
    "fasterdecoding-merged": ({"medusa_num_heads": 3}, "medusa_num_heads 3 where"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_config_that_contradicts_gives_one_warning(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    values, message = CONTRADICTIONS[name]
    folder = write_heads(name, tmp_path / "heads", content(), tiny_model)
    change_config(folder, **values)
    loaded = load_heads(folder)
    assert (loaded.heads.num_heads, loaded.heads.num_layers) == (2, 1)
    (warning,) = loaded.warnings
    assert re.search(message, warning)
    assert warning.endswith(": using the tensors") and "\n" not in warning


def test_vllm_options_that_contradict(tmp_path: Path) -> None:
    vllm(tmp_path, content(), tmp_path)
    facts = load_heads(tmp_path).facts
    config = {"model_type": "medusa", "medusa_fc_bias": False, "truncated_vocab_size": 5}
    assert find_contradiction(config, facts, Path("config.json")) == (
        "config.json says medusa_fc_bias False where the tensors have True and "
        "truncated_vocab_size 5 where the tensors have 300: using the tensors"
    )
    # These keys mean something else in the config of a model.
    assert find_contradiction(config | {"model_type": "llama"}, facts, Path("config.json")) is None
