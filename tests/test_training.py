"""Training as a whole: what heads learn, what they leave alone, and that a kill loses nothing."""

import importlib.util
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import (
    HIDDEN_SIZE,
    VOCAB_SIZE,
    llama_config,
    save_tiny_heads,
    save_tiny_model,
)
from transformers import AutoModelForCausalLM

from medusa_trt.cli import main
from medusa_trt.errors import TrainingError
from medusa_trt.export.base_model import BaseModel, load_base_model, source_from_name
from medusa_trt.export.head_checkpoint import heads_from_path, heads_from_tensors
from medusa_trt.export.heads import HeadsModule, embedding_of
from medusa_trt.training.backbone import (
    load_backbone,
    precision_of,
    unembedding_of,
)
from medusa_trt.training.distill import generate_data
from medusa_trt.training.heads_model import (
    TrainableHeads,
    shape_of,
    tensors_from_heads,
)
from medusa_trt.training.medusa1 import load_split, train_heads
from medusa_trt.training.medusa2 import (
    learning_rates,
    merged_tensors,
    ramped,
    save_combined,
    train_joint,
)
from medusa_trt.training.modules import HeadsOnBackbone
from medusa_trt.training.options import (
    DataOptions,
    HeadsShape,
    JointOptions,
    Quantization,
    TrainOptions,
)
from medusa_trt.training.rows import DraftVocabulary, LabelledTokens, Split
from medusa_trt.training.shards import Features
from medusa_trt.training.trainer import last_checkpoint

A, B, V = 5, 3, 32
NOISE = 0.3


@pytest.fixture
def base(tiny_model: Path) -> BaseModel:
    return load_base_model(source_from_name(str(tiny_model)))


def ruled_tokens(length: int, noise: float, generator: torch.Generator) -> list[int]:
    """t' = A t + B mod V, one more with probability `noise`."""
    tokens = [int(torch.randint(V, (1,), generator=generator))]
    while len(tokens) < length:
        extra = int(torch.rand(1, generator=generator) < noise)
        tokens.append((A * tokens[-1] + B + extra) % V)
    return tokens


def best_accuracy(steps: int, noise: float) -> float:
    """What the rule allows for the token `steps` after a known one: its likeliest value."""
    shares: dict[int, float] = {}
    for extras in itertools.product((0, 1), repeat=steps):
        token, share = 0, 1.0
        for extra in extras:
            token, share = (A * token + B + extra) % V, share * (noise if extra else 1 - noise)
        shares[token] = shares.get(token, 0.0) + share
    return max(shares.values())


def ruled_split(base: BaseModel, noise: float, *, has_features: bool, count: int = 60) -> Split:
    """Replies that follow the rule; the kept hidden state is the embedding of the last token."""
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(V, HIDDEN_SIZE, generator=generator)
    conversations = []
    for _ in range(count):
        tokens = torch.tensor(ruled_tokens(50, noise, generator), dtype=torch.int32)
        turns = torch.tensor([0] * 4 + [1] * 46, dtype=torch.int32)
        features = Features(
            embedding[tokens[3:-1].long()].half(),
            tokens[4:, None].expand(-1, 8).contiguous(),
            torch.zeros(46, 8).half(),
        )
        conversations.append(LabelledTokens(tokens, turns, features if has_features else None))
    return Split(conversations[:-10], conversations[-10:])


def quick(shape: HeadsShape, **changes: object) -> TrainOptions:
    values: dict[str, object] = {
        "shape": shape,
        "draft_vocab_size": V,
        "soft_weight": 0.0,
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
        "num_epochs": 10,
        "num_checkpoints": 2,
        "batch_rows": 128,
        "bf16": False,
    }
    return TrainOptions(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("noise", [0.0, NOISE])
@pytest.mark.parametrize("has_root_map", [False, True])
def test_each_head_reaches_the_accuracy_that_a_rule_allows(
    num_layers: int, noise: float, has_root_map: bool, base: BaseModel, tmp_path: Path
) -> None:
    """Head i sees a token and shall predict the one i + 2 further on.

    With a root map it sees the next token too, and a noisy rule allows more.
    """
    split = ruled_split(base, noise, has_features=True)
    shape = HeadsShape(
        num_layers=num_layers, has_root_map=has_root_map, has_projection=not has_root_map
    )
    options = quick(shape)
    result = train_heads(base, split, tmp_path, options)
    for head, accuracy in enumerate(result.accuracy.top_1):
        allowed = best_accuracy(head + (1 if has_root_map else 2), noise)
        assert allowed - 0.08 < accuracy < allowed + 0.08, (head, allowed)
    if not noise:
        assert result.accuracy.top_1 == (1.0, 1.0, 1.0)
        assert result.accuracy.tokens_per_step > 3.5


def test_heads_learn_the_rule_on_a_running_backbone_that_stays_as_it_is(
    base: BaseModel, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    split = ruled_split(base, 0.0, has_features=False)
    shape = HeadsShape(num_heads=2)
    options = quick(shape, learning_rate=5e-3, num_epochs=25, batch_size=5, accumulation=2)
    result = train_heads(base, split, tmp_path, options)
    assert min(result.accuracy.top_1) > 0.9
    assert all(parameter.grad is None for parameter in base.model.parameters())
    after = base.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("has_own_unembedding", [False, True])
def test_heads_and_layers_are_not_tied(has_own_unembedding: bool) -> None:
    shape = HeadsShape(
        num_heads=3, num_layers=2, has_projection=True, has_own_unembedding=has_own_unembedding
    )
    unembedding = torch.randn(V, 8)
    heads = TrainableHeads(shape, DraftVocabulary(None, V), unembedding, torch.randn(V, 8))
    parameters = dict(heads.named_parameters())
    assert len({value.data_ptr() for value in parameters.values()}) == len(parameters)
    assert len(parameters) == 3 * (2 * 2 + 2 + 2 + has_own_unembedding)
    for name, value in parameters.items():
        before = {other: tensor.detach().clone() for other, tensor in parameters.items()}
        with torch.no_grad():
            value.add_(1)
        changed = {o for o, tensor in parameters.items() if not torch.equal(tensor, before[o])}
        assert changed == {name}


@pytest.mark.parametrize("has_root_map", [True, False])
@pytest.mark.parametrize("has_projection", [True, False])
def test_the_checkpoint_gives_the_logits_that_were_trained(
    has_root_map: bool, has_projection: bool
) -> None:
    shape = HeadsShape(
        num_heads=2,
        num_layers=2,
        has_root_map=has_root_map,
        has_projection=has_projection,
        has_own_unembedding=True,
    )
    vocabulary = DraftVocabulary(torch.tensor([1, 4, 30]), V)
    unembedding, embedding, hidden = torch.randn(V, 8), torch.randn(V, 8), torch.randn(5, 8)
    roots = torch.randint(V, (5,))
    heads = TrainableHeads(shape, vocabulary, unembedding, embedding)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    read = heads_from_tensors(tensors_from_heads(heads.to_heads(), torch.float32), "test")
    exported = HeadsModule(read, unembedding, top_k=2, embedding=embedding)
    expected = heads.logits(hidden, roots)
    assert torch.allclose(exported.logits(hidden, roots), expected, atol=1e-5)
    other = heads.logits(hidden, (roots + 1) % V)
    assert torch.equal(other, expected) != has_root_map
    assert shape_of(read) == shape
    again = TrainableHeads(shape, vocabulary, unembedding, embedding)
    again.load_heads(read)
    assert torch.equal(again.logits(hidden, roots), expected)


@pytest.mark.parametrize("has_features", [True, False])
def test_a_killed_run_continues_to_the_same_weights(
    has_features: bool, base: BaseModel, tmp_path: Path
) -> None:
    """The last checkpoints are taken away, and one is left as a kill in the middle leaves it."""
    split = ruled_split(base, NOISE, has_features=has_features, count=30)
    options = quick(HeadsShape(), max_steps=12, num_checkpoints=4, num_sampled=4, batch_size=4)
    whole = train_heads(base, split, tmp_path / "whole", options)
    ended = tmp_path / "ended"
    train_heads(base, split, ended, options)
    shutil.rmtree(ended / "checkpoint-12")
    (ended / "checkpoint-10").mkdir()
    (ended / "checkpoint-10" / "trainer_state.json").write_text('{"global_')
    assert last_checkpoint(ended) == ended / "checkpoint-9"
    torch.manual_seed(1234)
    continued = train_heads(base, split, ended, options)
    assert [e["step"] for e in continued.log] == [e["step"] for e in whole.log]
    expected = tensors_from_heads(whole.heads, torch.float32)
    found = tensors_from_heads(continued.heads, torch.float32)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert continued.accuracy == whole.accuracy
    assert continued.num_train_tokens == whole.num_train_tokens


def test_the_tokens_of_the_updates_are_counted_and_not_those_of_the_data(
    base: BaseModel, tmp_path: Path
) -> None:
    """20 replies of 46 tokens, of which 45 have one to predict; a second pass brings no new ones.

    A conversation cut to 14 tokens has 10 tokens of its reply.
    """
    counts = {}
    for name, has_features, changes in (
        ("rows", True, {"max_steps": 3, "batch_rows": 16}),
        ("all rows", True, {"num_epochs": 2, "batch_rows": 300}),
        ("conversations", False, {"max_steps": 2, "batch_size": 3, "accumulation": 2}),
        ("cut conversations", False, {"num_epochs": 2, "max_length": 14}),
    ):
        split = ruled_split(base, 0.0, has_features=has_features, count=30)
        options = quick(HeadsShape(num_heads=1, has_root_map=False), **changes)
        counts[name] = train_heads(base, split, tmp_path / name, options).num_train_tokens
    assert counts == {
        "rows": 3 * 16,
        "all rows": 20 * 45,
        "conversations": 2 * 2 * 3 * 45,
        "cut conversations": 20 * 9,
    }


def test_joint_training_saves_a_model_that_is_its_own_teachers_neighbour(
    base: BaseModel, tmp_path: Path
) -> None:
    """Both stages; the merged folder loads as a model and as heads, and says what was trained."""
    split = ruled_split(base, 0.0, has_features=False, count=20)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    heads_options = quick(HeadsShape(num_heads=2), max_steps=6, batch_size=4)
    options = JointOptions(heads=heads_options, learning_rate=1e-3, lora_rank=4)
    result = train_joint(base, split, tmp_path / "checkpoints", options)
    assert result.first is not None
    assert not torch.equal(
        result.first.heads.heads[0].blocks[0].weight, result.second.heads.heads[0].blocks[0].weight
    )
    saved = tmp_path / "checkpoints" / "stage-2" / "checkpoint-6" / "model.safetensors"
    assert saved.stat().st_size < 500_000  # the adapter and the heads, without the backbone
    save_combined(base, result.model, result.second.heads, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    merged = result.model.state_dict()
    assert all(torch.equal(value, merged[name]) for name, value in loaded.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in merged.items())
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["medusa_num_heads"], config["medusa_num_layers"]) == (2, 1)
    tensors = merged_tensors(loaded, result.second.heads)
    named = {key: value for key, value in tensors.items() if key.startswith("medusa_head.")}
    heads = heads_from_tensors(named, "merged")
    assert torch.equal(
        heads.heads[1].blocks[0].weight, result.second.heads.heads[1].blocks[0].weight
    )


def adapted_module(base: BaseModel) -> HeadsOnBackbone:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(base.model, LoraConfig(r=4, target_modules="all-linear"))
    shape = HeadsShape(num_heads=2)
    heads = TrainableHeads(
        shape,
        DraftVocabulary(None, VOCAB_SIZE),
        unembedding_of(base.model),
        embedding_of(base.model),
    )
    return HeadsOnBackbone(
        adapted,
        heads,
        quick(shape, soft_weight=0.8),
        teacher=adapted.disable_adapter,
        heads_weight=lambda progress: ramped(0.2, progress),
    )


def test_the_teacher_is_the_model_without_its_adapter(base: BaseModel) -> None:
    """A new adapter changes nothing, so the divergence is 0; once it does, it is not."""
    module = adapted_module(base)
    ids = torch.randint(VOCAB_SIZE, (2, 12), generator=torch.Generator().manual_seed(0))
    batch = {
        "token_ids": ids,
        "turns": torch.tensor([[0] * 4 + [1] * 8] * 2),
        "attention_mask": torch.ones_like(ids),
    }
    assert module(**batch, progress=0.0).item() == pytest.approx(0, abs=1e-5)
    with_heads = module(**batch, progress=1.0).item()
    assert module(**batch, progress=0.5).item() == pytest.approx(with_heads / 2**0.5, rel=1e-3)
    for name, parameter in module.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    loss = module(**batch, progress=0.0)
    assert loss.item() > 1e-3
    loss.backward()
    with_gradient = {name for name, p in module.named_parameters() if p.grad is not None}
    assert with_gradient and all("lora_" in name or "heads." in name for name in with_gradient)


def test_the_heads_learn_four_times_as_fast_as_the_adapter(base: BaseModel) -> None:
    module = adapted_module(base)
    adapter, heads = learning_rates(module, JointOptions(learning_rate=1e-4))
    assert heads["lr"] == pytest.approx(4 * 1e-4) and adapter["lr"] == 1e-4
    counted = [sum(p.numel() for p in group["params"]) for group in (adapter, heads)]  # type: ignore[attr-defined]
    assert sum(counted) == sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert [ramped(0.2, p) for p in (0, 1, 2)] == pytest.approx([0, 0.2, 0.2])


def test_the_command_line_makes_data_and_heads_and_a_joint_model(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"Question {index}" for index in range(8)))
    data, heads, joint = (str(tmp_path / name) for name in ("data", "heads", "joint"))
    make = ["train", "data", str(tiny_model), "--output", data, "--prompts", str(prompts)]
    make += ["--batch-size", "4", "--max-new-tokens", "12", "--temperatures", "1"]
    assert main(make) == 0
    train = ["train", "heads", str(tiny_model), "--data", data, "--output", heads]
    train += ["--max-steps", "4", "--batch-rows", "16", "--num-checkpoints", "2"]
    assert main([*train, "--draft-vocab-size", "64"]) == 0
    assert "tokens a step" in capsys.readouterr().out
    loaded = heads_from_path(tmp_path / "heads")
    loaded.check_fits(HIDDEN_SIZE, VOCAB_SIZE)
    assert loaded.draft_vocab_size(VOCAB_SIZE) == 64
    names = {path.name for path in (tmp_path / "heads").iterdir()}
    assert {"README.md", "tree.json", "curves.png", "log.json", "config.json"} <= names
    card = (tmp_path / "heads" / "README.md").read_text()
    assert "seed: 0" in card and "| 3 |" in card
    assert "on 64 tokens" in card  # 4 steps of 16 rows
    assert main([*train, "--draft-vocab-size", "64"]) == 0  # nothing left to do
    assert main([*train, "--draft-vocab-size", "65"]) == 2
    assert "other data or options" in capsys.readouterr().err
    measure = ["train", "measure", str(tiny_model), heads, "--prompts", str(prompts)]
    capsys.readouterr()
    assert main([*measure, "--tree", "chain-2"]) == 0
    assert "tokens a step with 3 nodes" in capsys.readouterr().out
    assert main([*measure, "--tree", "chain-4"]) == 2
    both = ["train", "joint", str(tiny_model), "--data", data, "--output", joint, "--heads", heads]
    assert main([*both, "--max-steps", "2", "--batch-size", "2", "--lora-rank", "2"]) == 0
    assert AutoModelForCausalLM.from_pretrained(joint).config.medusa_num_heads == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["heads", "MODEL", "--data", "NOTHING", "--output", "OUT"], "holds no training data"),
        (["data", "unknown-model", "--output", "OUT"], "unknown model"),
        (["data", "MODEL", "--output", "OUT", "--batch-size", "0"], "batch_size is 0"),
        (["data", "MODEL", "--output", "OUT", "--temperatures", "0,-1"], "temperatures are"),
        (["data", "MODEL", "--output", "OUT", "--prompts", "NOTHING"], "cannot read the prompts"),
        (
            ["heads", "MODEL", "--data", "X", "--output", "OUT", "--num-heads", "0"],
            "num_heads is 0",
        ),
        (["joint", "MODEL", "--data", "X", "--output", "O", "--lora-rank", "0"], "lora_rank is 0"),
        (
            ["joint", "MODEL", "--data", "X", "--output", "O", "--quantization", "8bit"],
            "joint training changes the backbone's weights, which 8bit cannot hold",
        ),
    ],
)
def test_wrong_arguments_end_in_one_line(
    arguments: list[str],
    message: str,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"MODEL": str(tiny_model)}
    places |= {name: str(tmp_path / name) for name in ("NOTHING", "OUT", "X", "O")}
    assert main(["train", *(places.get(word, word) for word in arguments)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]


def test_a_command_that_was_refused_can_be_given_again_with_other_options(
    base: BaseModel, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tiny model of another name is refused after the run was recorded."""
    data, other = tmp_path / "data", shutil.copytree(tiny_model, tmp_path / "other")
    list(generate_data(base, [("Hi",), ("Yes",)], data, DataOptions(max_new_tokens=8)))
    train = ["--data", str(data), "--output", str(tmp_path / "out"), "--held-out-fraction", "0.5"]
    assert main(["train", "heads", str(other), *train, "--max-steps", "2"]) == 2
    assert "was made by" in capsys.readouterr().err
    assert main(["train", "heads", str(tiny_model), *train, "--max-steps", "1"]) == 0
    assert main(["train", "heads", str(tiny_model), *train, "--max-steps", "2"]) == 2


def test_data_of_another_model_and_quantization_without_its_library_are_refused(
    tiny_model: Path, base: BaseModel, tmp_path: Path
) -> None:
    list(generate_data(base, [("Hi",), ("Yes",)], tmp_path, DataOptions(max_new_tokens=3)))
    load_split(base, [tmp_path], 0.5)
    other = replace(base, source=replace(base.source, name="other"))
    with pytest.raises(TrainingError, match=r"was made by tiny-llama .* not by other"):
        load_split(other, [tmp_path], 0.5)
    more, without = tmp_path / "more", tmp_path / "without"
    options = DataOptions(max_new_tokens=3, seed=1)
    list(generate_data(base, [("No",), ("So",)], more, options))
    split = load_split(base, [tmp_path, more], 0.5)
    assert len(split.train) + len(split.held_out) == 4
    list(generate_data(base, [("No",)], without, replace(options, keep_features=False)))
    with pytest.raises(TrainingError, match=r"only one of .* holds hidden states"):
        load_split(base, [tmp_path, without], 0.5)
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(TrainingError, match=r"pip install 'medusa-trt\[train-quantized\]'"):
            load_backbone(str(tiny_model), quantization="4bit")


@pytest.mark.parametrize("step", ["data", "heads", "measure"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("model.gguf", "GGUF file, which cannot be loaded in 4bit"),
        ("adapter", "an adapter to merge, which cannot be loaded in 4bit"),
        ("packed", "the weights of packed are quantized already"),
    ],
)
def test_a_model_that_cannot_be_quantized_is_refused_in_one_line(
    step: str,
    model: str,
    message: str,
    base: BaseModel,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "adapter").mkdir()
    named = json.dumps({"base_model_name_or_path": str(tiny_model)})
    (tmp_path / "adapter" / "adapter_config.json").write_text(named)
    packed = shutil.copytree(tiny_model, tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (packed / "config.json").write_text(json.dumps(config))
    list(generate_data(base, [("Hi",)], tmp_path / "data", DataOptions(max_new_tokens=2)))
    others = {
        "data": ["--output", str(tmp_path / "new")],
        "heads": ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")],
        "measure": [str(save_tiny_heads(tmp_path / "heads.safetensors"))],
    }
    command = ["train", step, str(tmp_path / model), *others[step], "--quantization", "4bit"]
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_heads_learn_on_a_quantized_backbone_that_stays_as_it_is(
    quantization: Quantization, tmp_path: Path
) -> None:
    """Also when its state is read; the tables of the tokens keep the model's own type."""
    pytest.importorskip("bitsandbytes")
    model = save_tiny_model(tmp_path / "model", llama_config())
    base = load_backbone(str(model), torch.float32, quantization)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        logits = base.model(ids).logits
        base.model.state_dict()
        assert torch.equal(base.model(ids).logits, logits)
    packed = {"8bit": torch.int8, "4bit": torch.uint8}[quantization]
    assert base.model.model.layers[1].mlp.up_proj.weight.dtype == packed
    assert unembedding_of(base.model).dtype == embedding_of(base.model).dtype == torch.float32
    assert precision_of(base.model) == f"{quantization} float32"
    before = {name: value.clone() for name, value in base.model.named_parameters()}
    split = ruled_split(base, 0.0, has_features=False)
    options = quick(
        HeadsShape(num_heads=2), learning_rate=5e-3, num_epochs=25, batch_size=5, accumulation=2
    )
    result = train_heads(base, split, tmp_path, options)
    assert min(result.accuracy.top_1) > 0.9
    assert all(parameter.grad is None for parameter in base.model.parameters())
    after = dict(base.model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    last = last_checkpoint(tmp_path)
    assert last is not None and (last / "model.safetensors").stat().st_size < 300_000
    shutil.rmtree(last)
    assert train_heads(base, split, tmp_path, options).accuracy == result.accuracy
