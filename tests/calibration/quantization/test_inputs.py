"""What a measurement of a quantized model starts from: texts, the unquantized model, the heads."""

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from support.random_texts import random_texts
from support.table_session import session_on_table, with_eos
from support.tiny_models import llama_config, save_tiny_model

from medusa_trt.calibration.options import ReplySettings
from medusa_trt.calibration.prompts import BenchPrompt
from medusa_trt.calibration.quantization.inputs import (
    HeadsMeter,
    load_unquantized_model,
    texts_from_records,
)
from medusa_trt.calibration.quantization.meter import Text
from medusa_trt.calibration.replies import run_over_text
from medusa_trt.calibration.trees.head_ranks import RankRecord
from medusa_trt.errors import CalibrationError, ExportError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.options import GenerationOptions
from medusa_trt.runtime.session import MedusaSession
from medusa_trt.tree_configs import load_tree


def test_each_prompt_gets_the_reply_that_was_recorded_for_it(session: MedusaSession) -> None:
    prompts = [BenchPrompt(name, "", (f"text {name}", "more")) for name in "abc"]
    settings = ReplySettings(prompts="test", prompts_sha256="")
    records = [
        RankRecord(settings=settings, prompt_id=name, prompt_tokens=3, token_ids=ids, ranks=[])
        for name, ids in (("c", [3, 3]), ("a", [1, 1, 1]), ("b", [2, 2]))
    ]
    texts = texts_from_records(session, prompts, records)
    assert [text.token_ids for text in texts] == [(1, 1, 1), (2, 2), (3, 3)]
    prompts_as_text = [b"".join(map(session.text.token_bytes, text.prompt_ids)) for text in texts]
    assert prompts_as_text == [b"user: text %c\nassistant: " % name for name in b"abc"]


@pytest.mark.parametrize("skill", [0.3, 0.9])
@pytest.mark.parametrize("name", ["plain", "chain-3", "cartesian-2x3"])
def test_the_acceptance_length_is_that_of_decoding(
    skill: float, name: str, tiny_bundle: Bundle
) -> None:
    tree = load_tree(name)
    bundle = dataclasses.replace(with_eos(tiny_bundle, []), tree=tree)
    session, _ = session_on_table(bundle, skill=skill)
    texts, all_hidden, num_steps = [], [], 0
    for prompt_ids, length in (((1, 2, 3), 30), ((9,), 2), ((4, 5), 17)):
        reply = session.generate(
            list(prompt_ids), GenerationOptions(max_new_tokens=length, tree=tree)
        )
        num_steps += len(reply.stats.accept_lengths)
        texts.append(Text(prompt_ids, tuple(reply.token_ids)))
        text = [*prompt_ids, *reply.token_ids[:-1]]
        chunks = run_over_text(session, text, len(prompt_ids) - 1)
        all_hidden.append(np.concatenate([np.array(chunk.hidden) for chunk in chunks]))
    meter = HeadsMeter(bundle, texts, lambda: session)
    assert meter.measure_accept_length(all_hidden) == pytest.approx((29 + 1 + 16) / num_steps)
    meter.close()


def test_without_heads_a_step_adds_one_token_and_no_session_is_opened(
    headless_bundle: Bundle,
) -> None:
    def refuse() -> MedusaSession:
        raise AssertionError("a session was opened")

    meter = HeadsMeter(headless_bundle, random_texts(), refuse)
    assert meter.measure_accept_length([]) == 1.0
    meter.close()


def test_the_digest_is_that_of_heads_and_tree(tiny_bundle: Bundle) -> None:
    def digest(bundle: Bundle) -> str:
        return HeadsMeter(bundle, [], MedusaSession).digest  # type: ignore[arg-type]

    files = tiny_bundle.manifest.files
    names = {}
    for name, spec in files.items():
        changed = files | {name: msgspec.structs.replace(spec, sha256="0" * 64)}
        manifest = msgspec.structs.replace(tiny_bundle.manifest, files=changed)
        names[name] = digest(dataclasses.replace(tiny_bundle, manifest=manifest))
    before = digest(tiny_bundle)
    assert {name for name in names if names[name] != before} == {"heads.onnx", "weights.data"}
    assert digest(dataclasses.replace(tiny_bundle, tree=load_tree("chain-1"))) != before


def test_the_unquantized_model_is_loaded_by_a_name_that_fits_the_bundle(
    tiny_bundle: Bundle, tiny_model: Path, tmp_path: Path
) -> None:
    base = load_unquantized_model(tiny_bundle, str(tiny_model))
    assert {p.dtype for p in base.model.parameters()} == {torch.float32}
    with pytest.raises(CalibrationError, match="name the unquantized model with --model"):
        load_unquantized_model(tiny_bundle, None)
    with pytest.raises(ExportError, match="unknown model 'none'"):
        load_unquantized_model(tiny_bundle, "none")
    other = save_tiny_model(tmp_path / "other", llama_config(num_hidden_layers=1))
    with pytest.raises(ExportError, match="has 2 layers, other has 1"):
        load_unquantized_model(tiny_bundle, str(other))
