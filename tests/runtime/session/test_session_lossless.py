"""Medusa on the real model: the same tokens as plain decoding, and the model's own logits."""

import numpy as np
import pytest
import torch

from medusa_trt.calibration.prompts import load_self_generated_prompts
from medusa_trt.export.comparison.logits import MAX_RELATIVE_ERROR, compute_agreement
from medusa_trt.export.models.base_model import BaseModel
from medusa_trt.export.pipeline import ExportOptions, export_bundle
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.runtime.session import GenerationOptions, MedusaSession
from medusa_trt.tree_configs import chain_tree, load_tree

NUM_PROMPTS = 20
MAX_NEW_TOKENS = 32
MAX_LOGIT_DIFFERENCE = 1e-3
TREES = ("chain-3", "cartesian-2x3", "smollm2_135m_6", "mc_sim_7b_63")


def chat_ids(base: BaseModel, messages: list[dict[str, str]]) -> list[int]:
    text = base.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids: list[int] = base.tokenizer.encode(text, add_special_tokens=False)
    return ids


def gap_at_divergence(
    session: MedusaSession, prompt_ids: list[int], plain: list[int], medusa: list[int]
) -> str:
    """Where two replies part, and by how much the model prefers one token over the other."""
    pairs = enumerate(zip(plain, medusa, strict=False))
    index = next((i for i, (a, b) in pairs if a != b), min(len(plain), len(medusa)))
    text = np.array(prompt_ids + plain[:index])
    outputs = session.engine.verify(text[None], chain_tree(len(text) - 1), [0], logits=True)
    assert outputs.logits is not None
    top = np.sort(outputs.logits[0, -1])[-2:]
    return f"token {index}: logit gap {top[1] - top[0]:.2e}"


def test_medusa_equals_plain_decoding_on_twenty_prompts(demo_bundle: Bundle) -> None:
    differing = []
    accept_lengths: list[int] = []
    with MedusaSession(demo_bundle) as session:
        for number, prompt in enumerate(load_self_generated_prompts()[:NUM_PROMPTS]):
            ids = session.text.encode_chat([{"role": "user", "content": prompt.turns[0]}])
            options = GenerationOptions(max_new_tokens=MAX_NEW_TOKENS, tree=load_tree("plain"))
            plain = session.generate(ids, options).token_ids
            for place, spec in enumerate(TREES):
                options = GenerationOptions(
                    max_new_tokens=MAX_NEW_TOKENS,
                    tree=load_tree(spec),
                    lookup_ngram=(0, 3)[(number + place) % 2],
                )
                medusa = session.generate(ids, options)
                accept_lengths += medusa.stats.accept_lengths
                if medusa.token_ids != plain:
                    gap = gap_at_divergence(session, ids, plain, medusa.token_ids)
                    differing.append(f"prompt {prompt.id}, {spec}, {gap}")
    assert not differing
    # The comparison means nothing unless drafts of several tokens were accepted.
    assert np.mean(accept_lengths) > 1.3 and max(accept_lengths) >= 4


@pytest.fixture(scope="module")
def fp32_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    output = tmp_path_factory.mktemp("fp32") / "smollm2-135m"
    return export_bundle(ExportOptions(model="smollm2-135m", output=output, precision="fp32"))


@pytest.mark.slow
def test_fp32_equals_the_models_logits_and_reply(
    fp32_bundle: Bundle, base_model: BaseModel
) -> None:
    (text_ids,) = [base_model.tokenizer.encode("The quick brown fox jumps over the lazy dog.")]
    engine = OrtEngine(fp32_bundle, capacity=256)
    outputs = engine.verify(np.array([text_ids]), chain_tree(len(text_ids) - 1), [0], logits=True)
    with torch.no_grad():
        expected = base_model.model(torch.tensor([text_ids]), use_cache=False).logits[0].numpy()
    assert outputs.logits is not None
    assert np.abs(outputs.logits[0] - expected).max() <= MAX_LOGIT_DIFFERENCE
    engine.close()
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    prompt_ids = chat_ids(base_model, prompt)
    generated = base_model.model.generate(  # type: ignore[operator]
        torch.tensor([prompt_ids]), max_new_tokens=24, do_sample=False
    )
    with MedusaSession(fp32_bundle) as session:
        reply = session.generate(prompt, GenerationOptions(max_new_tokens=24))
    assert reply.token_ids == generated[0, len(prompt_ids) :].tolist()


@pytest.mark.parametrize("spec", ["chain-4", "cartesian-2x3", "vicuna_7b_stage2"])
def test_each_node_has_the_logits_of_its_path(
    demo_bundle: Bundle, base_model: BaseModel, spec: str
) -> None:
    tree = load_tree(spec)
    prompt_ids = base_model.tokenizer.encode("The quick brown fox jumps over the lazy dog. Then")
    prompt = np.array(prompt_ids)
    tokens = np.random.default_rng(0).integers(0, 49152, tree.num_nodes)
    engine = OrtEngine(demo_bundle, capacity=256)
    engine.verify(prompt[None], chain_tree(len(prompt) - 1), [0])
    outputs = engine.verify(tokens[None], tree, [len(prompt)], logits=True)
    assert outputs.logits is not None
    paths = [(), *tree.medusa_choices]
    expected = np.empty_like(outputs.logits[0])
    for node, path in enumerate(paths):
        ancestors = [paths.index(path[:depth]) for depth in range(len(path) + 1)]
        text = torch.tensor([prompt_ids + tokens[ancestors].tolist()])
        with torch.no_grad():
            expected[node] = base_model.model(text, use_cache=False).logits[0, -1].numpy()
    # Single nodes after random tokens are off by up to half in int8; wrong paths are by more.
    agreement = compute_agreement(outputs.logits[0], expected)
    assert agreement.relative_error <= MAX_RELATIVE_ERROR[demo_bundle.manifest.target.precision]
    assert np.array_equal(outputs.argmax[0], outputs.logits[0].argmax(-1))
    engine.close()


def test_plain_decoding_agrees_with_the_model_where_it_is_sure(
    demo_bundle: Bundle, base_model: BaseModel
) -> None:
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    prompt_ids = chat_ids(base_model, prompt)
    with MedusaSession(demo_bundle) as session:
        reply = session.generate(prompt, GenerationOptions(max_new_tokens=24))
    text = torch.tensor([prompt_ids + reply.token_ids])
    with torch.no_grad():
        logits = base_model.model(text, use_cache=False).logits[0]
    start = len(prompt_ids) - 1
    for position, token in enumerate(reply.token_ids, start):
        top = logits[position].topk(2)
        if top.values[0] - top.values[1] > 1.0:
            assert token == top.indices[0]
