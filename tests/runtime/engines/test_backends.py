"""The choice of a session's backend."""

import pytest

from medusa_trt.errors import EngineError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.backends import BACKENDS
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import MedusaSession


def test_a_session_chooses_the_backend(trt_bundle: Bundle) -> None:
    with MedusaSession(trt_bundle, backend="ort-cpu", max_length=64, num_threads=1) as session:
        options = GenerationOptions(max_new_tokens=4, ignore_eos=True)
        assert len(session.generate("hello", options).token_ids) == 4
    with pytest.raises(
        EngineError, match=f"unknown backend 'cpu': choose from {', '.join(BACKENDS)}"
    ):
        MedusaSession(trt_bundle, backend="cpu")
    with pytest.raises(EngineError, match=r"needs|CUDA|no engines"):
        MedusaSession(trt_bundle)
