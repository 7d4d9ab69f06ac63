"""Self-distillation data: the model's own replies, whole after any interruption."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_models import EOS_ID, byte_tokenizer

from medusa_trt.calibration.prompts import mt_bench_prompts
from medusa_trt.errors import TrainingError
from medusa_trt.export.models.base_model import BaseModel, load_base_model, source_from_name
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.training.data.conversation import ChatFrame
from medusa_trt.training.data.distillation import generate_data, seed_prompts
from medusa_trt.training.data.engine_generation import EngineGenerator
from medusa_trt.training.data.generation import BatchGenerator, _Draw
from medusa_trt.training.data.rows import Split
from medusa_trt.training.data.shards import Shard, load_shards, shard_path
from medusa_trt.training.options import DataOptions

PROMPTS = [("Hi",), ("Tell me more",), ("Why?", "And then?"), ("One",), ("Two words",)]
OPTIONS = DataOptions(batch_size=2, num_turns=2, max_new_tokens=6, temperatures=(0.0, 1.0), seed=3)


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> BaseModel:
    return load_base_model(source_from_name(str(tiny_model)))


def conversations(shard: Shard) -> list[tuple[list[int], list[int]]]:
    lengths = shard.lengths.tolist()
    pairs = zip(shard.token_ids.split(lengths), shard.turns.split(lengths), strict=True)
    return [(ids.tolist(), turns.tolist()) for ids, turns in pairs]


def files_of(folder: Path) -> dict[str, bytes]:
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


def test_a_texts_continuation_does_not_depend_on_the_batch_it_is_in(tiny_bundle: Bundle) -> None:
    """Texts of different lengths that end at different times, more than the engine has slots."""
    rng = np.random.default_rng(0)
    opening = [5, 6, 7]
    texts = [opening + rng.integers(3, 90, rng.integers(0, 40)).tolist() for _ in range(30)]

    def continued(batch_size: int, eos_ids: list[int]) -> list[list[int]]:
        engine = OrtEngine(tiny_bundle, capacity=120, batch_size=batch_size)
        generator = EngineGenerator(engine, eos_ids)
        found = generator.continue_texts(texts, max_new_tokens=20, temperature=0)
        assert all(each.is_ended == (each.token_ids[-1] in eos_ids) for each in found)
        return [each.token_ids for each in found]

    words = continued(1, [])
    ends = sorted({token for ids in words for token in ids})[::6]
    alone = continued(1, ends)
    assert len({len(ids) for ids in alone}) > 3  # else nothing would be moved
    assert continued(24, ends) == alone


def test_a_text_that_does_not_fit_the_engine_is_refused(tiny_bundle: Bundle) -> None:
    generator = EngineGenerator(OrtEngine(tiny_bundle, capacity=64), [EOS_ID])
    with pytest.raises(TrainingError, match="50 tokens and 20 new ones do not fit"):
        generator.continue_texts([[5] * 50], max_new_tokens=20, temperature=0)


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
    said = str(base.tokenizer.decode(token_ids[turns.index(1) : second]))
    assert said.endswith("user: And then?\nassistant: ")
    for token_ids, turns in by_prompt:
        for turn in set(turns) - {0}:
            reply = [token for token, of in zip(token_ids, turns, strict=True) if of == turn]
            assert 0 < len(reply) <= OPTIONS.max_new_tokens and EOS_ID not in reply[:-1]


def test_an_interrupted_run_leaves_the_files_of_an_uninterrupted_one(
    base: BaseModel, tmp_path: Path
) -> None:
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    assert len(list(generate_data(base, PROMPTS, whole, OPTIONS))) == 3
    run = generate_data(base, PROMPTS, ended, OPTIONS)
    next(run)
    del run
    (ended / "shard-00001.tmp").write_bytes(b"half a shard")
    assert not shard_path(ended, 1).exists()
    with pytest.raises(TrainingError, match="lacks 2 of 3 shards"):
        load_shards(ended)
    torch.manual_seed(99)
    again = list(generate_data(base, PROMPTS, ended, OPTIONS))
    assert [shard is None for shard in again] == [True, False, False]
    assert files_of(ended) == files_of(whole)
    assert len(load_shards(ended)) == 3


def test_other_options_never_mix_with_what_a_folder_holds(base: BaseModel, tmp_path: Path) -> None:
    next(generate_data(base, PROMPTS, tmp_path / "data", OPTIONS))
    for prompts, seed, word in ((PROMPTS, 4, "seed 3, now 4"), (PROMPTS[::-1], 3, "prompts")):
        options = DataOptions(
            batch_size=2, num_turns=2, max_new_tokens=6, temperatures=(0.0, 1.0), seed=seed
        )
        with pytest.raises(TrainingError, match=word):
            next(generate_data(base, prompts, tmp_path / "data", options))


def test_a_damaged_shard_is_named(base: BaseModel, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    list(generate_data(base, PROMPTS, folder, OPTIONS))
    shard_path(folder, 1).write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="shard-00001"):
        load_shards(folder)


def test_drawing_follows_the_distribution() -> None:
    torch.manual_seed(0)
    scores = torch.tensor([0.0, 1.0, -torch.inf, 2.0])
    drawn = _Draw(0.5)(torch.empty(0), scores.repeat(20_000, 1)).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert torch.allclose(shares, (scores / 0.5).softmax(-1), atol=0.01)


def test_sampled_text_differs_from_greedy_text_and_between_seeds(base: BaseModel) -> None:
    generator, text = BatchGenerator(base), [[65, 66, 67]] * 4

    def written(temperature: float, seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        found = generator.continue_texts(text, max_new_tokens=8, temperature=temperature)
        return [continuation.token_ids for continuation in found]

    assert written(0.0, 0) == written(0.0, 1)
    assert written(1.0, 0) == written(1.0, 0) != written(1.0, 1)


def test_no_question_of_mt_bench_is_among_the_prompts(tmp_path: Path) -> None:
    """The packaged prompts hold none; a file with one, however it is spaced, is refused."""
    questions = {" ".join(t.split()).lower() for p in mt_bench_prompts() for t in p.turns}
    packaged = seed_prompts(None)
    assert len(packaged) > 1000 and len(questions) == 160
    assert not questions & {" ".join(turn.split()).lower() for turns in packaged for turn in turns}
    file = tmp_path / "prompts.jsonl"
    for question in sorted(questions)[::40]:
        spaced = "  " + question.upper().replace(" ", "\n")
        file.write_text(json.dumps({"turns": ["Hello", spaced]}) + "\n")
        with pytest.raises(TrainingError, match="question of MT-bench"):
            seed_prompts(file)


def test_a_template_is_taken_apart_and_put_together_again() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "<s>{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    frame = ChatFrame.from_tokenizer(tokenizer)
    reply = [*tokenizer("Fine")["input_ids"], EOS_ID]
    ids = frame.opening(tokenizer, "Hi") + reply + frame.next_turn(tokenizer, reply, "So?")
    messages = [("user", "Hi"), ("assistant", "Fine"), ("user", "So?")]
    expected = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert tokenizer.decode(ids) == expected
    cut = [*tokenizer("Fine")["input_ids"]]
    assert frame.opening(tokenizer, "Hi") + cut + frame.next_turn(tokenizer, cut, "So?") == ids
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(TrainingError, match="does not show every turn"):
        ChatFrame.from_tokenizer(tokenizer)


def test_a_model_without_a_template_continues_text_only(base: BaseModel, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    plain = BaseModel(base.source, base.model, tokenizer, base.weights)
    options = DataOptions(batch_size=5, max_new_tokens=3)
    [shard] = generate_data(plain, PROMPTS, tmp_path / "data", options)
    assert shard is not None
    assert conversations(shard)[0][0][:2] == tokenizer("Hi")["input_ids"]
    with pytest.raises(TrainingError, match="no chat template"):
        next(generate_data(plain, PROMPTS, tmp_path / "more", DataOptions(num_turns=2)))


def test_held_out_prompts_never_overlap_the_others() -> None:
    """Also where a prompt occurs several times, and in any order of shards."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, 9, (12, 3), generator=generator, dtype=torch.int32)
    ids = [torch.cat([prompts[i % 12], torch.full((4,), i, dtype=torch.int32)]) for i in range(40)]
    turns = torch.tensor([0, 0, 0, 1, 1, 1, 1], dtype=torch.int32)

    def shard(rows: list[torch.Tensor]) -> Shard:
        lengths = torch.full((len(rows),), 7, dtype=torch.int32)
        return Shard(torch.cat(rows), turns.repeat(len(rows)), lengths, None)

    def sides(shards: list[Shard]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        split = Split.from_shards(shards, 0.2)
        train, held_out = (
            sorted(tuple(c.token_ids.tolist()) for c in side)
            for side in (split.train, split.held_out)
        )
        return train, held_out

    train, held_out = sides([shard(ids[:15]), shard(ids[15:])])
    assert len(train) + len(held_out) == 40
    assert len({row[:3] for row in held_out}) == 3  # 20 % of twelve prompts, rounded up
    assert not {row[:3] for row in train} & {row[:3] for row in held_out}
    assert sides([shard(ids[::-1])]) == (train, held_out)
    with pytest.raises(TrainingError, match="1 different prompts"):
        sides([shard(ids[:1])])
