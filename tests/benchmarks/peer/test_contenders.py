"""Setting up the contenders."""

from pathlib import Path

import pytest
from peer.contenders import set_up_contenders
from peer.environments import PeerInstaller

from medusa_trt.errors import MedusaError


def test_what_cannot_be_set_up_is_left_out_with_the_reason(tmp_path: Path) -> None:
    messages: list[str] = []
    left_out: dict[str, str] = {}
    installer = PeerInstaller(tmp_path, messages.append)
    with pytest.raises(MedusaError, match="no contender could be set up"):
        set_up_contenders(installer, "no-such-model", [], 10, ["transformers"], left_out)
    assert left_out.keys() == {"transformers-fp32", "transformers-bf16"}
    assert all("no-such-model" in reason for reason in left_out.values())
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_lists_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(MedusaError, match=r"choose from llama\.cpp-q4_0"):
        set_up_contenders(PeerInstaller(tmp_path, print), "smollm2-135m", [], 10, ["nobody"], {})
