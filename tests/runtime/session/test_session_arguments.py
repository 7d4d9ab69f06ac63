"""Arguments of a session that are nonsense, which are refused by name."""

from typing import Any

import numpy as np
import pytest
from support.table_session import session_on_table

from medusa_trt.errors import MedusaError, PromptError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import GenerationOptions, MedusaSession, SamplingOptions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 2.5}, "max_length is 2.5: it must be a whole number or None"),
        ({"max_length": "9"}, "max_length is '9'"),
        ({"max_length": True}, "max_length is True"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"batch_size": None}, "batch_size is None: it must be a whole number"),
        ({"num_threads": "2"}, "num_threads is '2'"),
        ({"num_threads": 1.5}, "num_threads is 1.5"),
        ({"engine": "ort-cpu"}, "engine is 'ort-cpu': it must be an Engine or None"),
        ({"backend": 5}, "unknown backend 5"),
    ],
)
def test_wrong_arguments_are_refused(
    tiny_bundle: Bundle, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(MedusaError, match=message):
        MedusaSession(tiny_bundle, **values)


@pytest.mark.parametrize("bundle", [5, None, b"x", ["x"]])
def test_what_is_no_path_is_no_bundle(bundle: Any) -> None:
    with pytest.raises(MedusaError, match=r"bundle is .*: it must be text or a path"):
        MedusaSession(bundle)


@pytest.mark.parametrize("options", [5, {}, {"max_new_tokens": 2}, SamplingOptions()])
def test_options_of_another_class_are_refused(tiny_bundle: Bundle, options: Any) -> None:
    session, _ = session_on_table(tiny_bundle)
    message = r"options is .*: it must be a GenerationOptions or None"
    for call in (session.generate, session.stream):
        with pytest.raises(PromptError, match=message):
            call([1, 2], options)
    with pytest.raises(PromptError, match=message):
        session.generate_batch([[1, 2]], options)


def test_a_stop_id_beyond_the_vocabulary_is_refused(tiny_bundle: Bundle) -> None:
    session, _ = session_on_table(tiny_bundle)
    last = tiny_bundle.manifest.model.vocab_size - 1
    with pytest.raises(PromptError, match=rf"stop_ids has {last + 1}: .* ids are 0 to {last}"):
        session.generate([1, 2], GenerationOptions(stop_ids=(last + 1,)))
    session.generate([1, 2], GenerationOptions(stop_ids=(last,), max_new_tokens=1))


def test_a_seed_of_numpy_does_not_overflow(tiny_bundle: Bundle) -> None:
    session, _ = session_on_table(tiny_bundle)
    seed: Any = np.int32(2**31 - 1)
    options = GenerationOptions(
        sampling=SamplingOptions(temperature=1.0, seed=seed), max_new_tokens=3
    )
    with_python = GenerationOptions(
        sampling=SamplingOptions(temperature=1.0, seed=2**31 - 1), max_new_tokens=3
    )
    prompts = [[1, 2], [3, 4]]
    replies = [session.generate_batch(prompts, each) for each in (options, with_python)]
    assert replies[0][1].token_ids == replies[1][1].token_ids
