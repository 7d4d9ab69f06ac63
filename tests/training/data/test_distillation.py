"""The model's replies to seed prompts, complete after any interruption."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.tiny_models import EOS_ID, make_byte_tokenizer

from medusa_trt.calibration.prompts import load_mt_bench_prompts
from medusa_trt.errors import TrainingError
from medusa_trt.export.models.base_model import BaseModel, load_base_model
from medusa_trt.export.models.source import source_from_name
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.training.data.distillation import generate_data, load_seed_prompts
from medusa_trt.training.data.shards import Shard, load_shards, name_shard
from medusa_trt.training.options import DataOptions

PROMPTS = [("Hi",), ("Tell me more",), ("Why?", "And then?"), ("One",), ("Two words",)]
OPTIONS = DataOptions(batch_size=2, num_turns=2, max_new_tokens=6, temperatures=(0.0, 1.0), seed=3)


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> BaseModel:
    """The tiny model, loaded once: these tests do not train it."""
    return load_base_model(source_from_name(str(tiny_model)))


def conversations(shard: Shard) -> list[tuple[list[int], list[int]]]:
    lengths = shard.lengths.tolist()
    pairs = zip(shard.token_ids.split(lengths), shard.turns.split(lengths), strict=True)
    return [(ids.tolist(), turns.tolist()) for ids, turns in pairs]


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("from_bundle", [False, True])
def test_replies_and_features_equal_running_the_model_on_the_whole_text(
    base: BaseModel, tiny_bundle: Bundle, tmp_path: Path, from_bundle: bool
) -> None:
    """Greedy replies of batches against one forward pass a conversation."""
    options = DataOptions(batch_size=5, max_new_tokens=8, temperatures=(0.0,))
    bundle = tiny_bundle if from_bundle else None
    [shard] = generate_data(base, PROMPTS, tmp_path / "data", options, bundle)
    assert shard is not None and shard.features is not None
    row = 0
    for (token_ids, turns), (prompt, *_) in zip(conversations(shard), PROMPTS, strict=True):
        with torch.inference_mode():
            hidden = base.model.model(torch.tensor([token_ids])).last_hidden_state[0]
            logprobs = base.model.lm_head(hidden).log_softmax(-1)
        opening = base.tokenizer(f"user: {prompt}\nassistant: ")["input_ids"]
        assert token_ids[: turns.index(1)] == opening
        for place in range(turns.index(1), len(turns)):
            best = logprobs[place - 1].topk(8)
            assert turns[place] == 1 and token_ids[place] == int(best.indices[0])
            assert torch.allclose(shard.features.hidden[row].float(), hidden[place - 1], atol=5e-3)
            assert torch.allclose(shard.features.top_logprobs[row].float(), best.values, atol=5e-3)
            assert shard.features.top_ids[row, 0] == best.indices[0]
            row += 1
    assert row == len(shard.features.hidden)


def test_a_bundle_of_another_model_is_refused(
    tiny_model: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    base = load_base_model(source_from_name(str(other)))
    with pytest.raises(TrainingError, match=r"the bundle is of tiny-llama .* not of other"):
        next(generate_data(base, PROMPTS, tmp_path / "data", OPTIONS, tiny_bundle))
    assert not (tmp_path / "data").exists()


def test_a_conversation_has_the_turns_of_its_seed_and_the_models_own(
    base: BaseModel, tmp_path: Path
) -> None:
    shards = list(generate_data(base, PROMPTS, tmp_path / "data", OPTIONS))
    by_prompt = [pair for shard in shards if shard is not None for pair in conversations(shard)]
    token_ids, turns = by_prompt[2]
    assert sorted(set(turns)) == [0, 1, 2]
    second = turns.index(2)
    text = str(base.tokenizer.decode(token_ids[turns.index(1) : second]))
    assert text.endswith("user: And then?\nassistant: ")
    for token_ids, turns in by_prompt:
        for turn in set(turns) - {0}:
            reply = [token for token, label in zip(token_ids, turns, strict=True) if label == turn]
            assert 0 < len(reply) <= OPTIONS.max_new_tokens and EOS_ID not in reply[:-1]


def test_an_interrupted_run_leaves_the_files_of_an_uninterrupted_one(
    base: BaseModel, tmp_path: Path
) -> None:
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    assert len(list(generate_data(base, PROMPTS, whole, OPTIONS))) == 3
    run = generate_data(base, PROMPTS, ended, OPTIONS)
    next(run)
    del run
    (ended / f".shard-00001.partial-{1 << 30}.safetensors").write_bytes(b"half a shard")
    assert not name_shard(ended, 1).exists()
    with pytest.raises(TrainingError, match="lacks 2 of 3 shards"):
        load_shards(ended)
    torch.manual_seed(99)
    again = list(generate_data(base, PROMPTS, ended, OPTIONS))
    assert [shard is None for shard in again] == [True, False, False]
    assert read_files(ended) == read_files(whole)
    assert len(load_shards(ended)) == 3


def test_other_options_never_mix_with_what_a_folder_holds(base: BaseModel, tmp_path: Path) -> None:
    next(generate_data(base, PROMPTS, tmp_path / "data", OPTIONS))
    for prompts, seed, word in ((PROMPTS, 4, "seed 3, now 4"), (PROMPTS[::-1], 3, "prompts")):
        options = DataOptions(
            batch_size=2, num_turns=2, max_new_tokens=6, temperatures=(0.0, 1.0), seed=seed
        )
        with pytest.raises(TrainingError, match=word):
            next(generate_data(base, prompts, tmp_path / "data", options))


def test_no_question_of_mt_bench_is_among_the_prompts(tmp_path: Path) -> None:
    """The packaged prompts hold none; a file that holds one, with any spacing, is refused."""
    questions = {" ".join(t.split()).lower() for p in load_mt_bench_prompts() for t in p.turns}
    packaged = load_seed_prompts(None)
    assert len(packaged) > 1000 and len(questions) == 160
    assert not questions & {" ".join(turn.split()).lower() for turns in packaged for turn in turns}
    file = tmp_path / "prompts.jsonl"
    for question in sorted(questions)[::40]:
        spaced = "  " + question.upper().replace(" ", "\n")
        file.write_text(json.dumps({"turns": ["Hello", spaced]}) + "\n")
        with pytest.raises(TrainingError, match="question of MT-bench"):
            load_seed_prompts(file)


def test_a_model_without_a_template_continues_text_only(base: BaseModel, tmp_path: Path) -> None:
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = None
    plain = BaseModel(base.source, base.model, tokenizer, base.weights)
    options = DataOptions(batch_size=5, max_new_tokens=3)
    [shard] = generate_data(plain, PROMPTS, tmp_path / "data", options)
    assert shard is not None
    assert conversations(shard)[0][0][:2] == tokenizer("Hi")["input_ids"]
    with pytest.raises(TrainingError, match="no chat template"):
        next(generate_data(plain, PROMPTS, tmp_path / "more", DataOptions(num_turns=2)))
