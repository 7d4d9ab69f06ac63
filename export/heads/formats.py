"""A table of the formats of heads: names, files, what each can hold, and the config it needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from medusa_trt.errors import HeadsError
from medusa_trt.export.heads.key_layouts import SEQUENTIAL, TENSORRT_LLM, VLLM, KeyLayout

Json = dict[str, object]
Unembedding = Literal["own", "common", "shared"]

MAX_DRAFT_LENGTH = 63
"""Nodes of the published trees without their root: TensorRT-LLM's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsFacts:
    """Facts about heads that a config can state.

    Attributes:
        num_heads: number of heads.
        num_layers: residual blocks of each head.
        hidden_size: width of the hidden state.
        vocab_size: size of the backbone's vocabulary; None if it is unknown.
        draft_vocab_size: number of tokens that the heads choose from; None for all.
        has_biases: whether the residual blocks have biases.
        has_projection: whether a linear map follows the blocks, this project's extension.
        has_root_map: whether they read the root's embedding, this project's extension.
        has_token_map: whether the vocabulary is truncated.
        unembedding: "own" if each head has one, "common" if the file has one for all heads,
            "shared" if the heads use the backbone's.
        base_model: what `base_model_name_or_path` says, or None.
    """

    num_heads: int
    num_layers: int
    hidden_size: int
    vocab_size: int | None
    draft_vocab_size: int | None
    has_biases: bool
    has_projection: bool
    has_root_map: bool
    has_token_map: bool
    unembedding: Unembedding
    base_model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadFormat:
    """A row: how a format names and stores heads, and what it holds.

    Attributes:
        name: the name for `--to`.
        description: one line for help texts.
        file: the file of the tensors; a whole model's shard where `backbone` is "weights".
        config: makes the config from the facts; a base config is merged under it.
        layout: its key layout.
        prefix: text before each key of the heads.
        unembeddings: which it holds; the first one is what others are turned into.
        needs_biases: whether its tools always read biases; zeros are written if there are none.
        max_layers: most residual blocks of a head, None for any number.
        has_extra_maps: whether it holds a root map and a projection.
        has_token_map: whether it holds a token map.
        backbone: what of the backbone its folder needs: nothing, the "config", or the "weights".
        config_file: the config's name.
        needs_base_model: its tools find the backbone by the config's `base_model_name_or_path`.
    """

    name: str
    description: str
    file: str
    config: Callable[[HeadsFacts], Json]
    layout: KeyLayout = SEQUENTIAL
    prefix: str = ""
    unembeddings: tuple[Unembedding, ...] = ("own",)
    needs_biases: bool = True
    max_layers: int | None = None
    has_extra_maps: bool = False
    has_token_map: bool = False
    backbone: Literal["config", "weights"] | None = None
    config_file: str = "config.json"
    needs_base_model: bool = False


def format_from_name(name: str) -> HeadFormat:
    """Finds a row.

    Raises:
        HeadsError: there is none by that name.
    """
    if name not in FORMATS:
        raise HeadsError(f"unknown head format {name!r}: give one of {', '.join(FORMATS)}")
    return FORMATS[name]


def _state_counts(facts: HeadsFacts) -> Json:
    return {"medusa_num_heads": facts.num_heads, "medusa_num_layers": facts.num_layers}


def _name_base_model(facts: HeadsFacts) -> Json:
    # No `architectures`: with one, text-generation-inference takes the folder for another kind.
    return {"base_model_name_or_path": facts.base_model, **_state_counts(facts)}


_SAFETENSORS, _PICKLE = "medusa_lm_head.safetensors", "medusa_lm_head.pt"

_ROWS = (
    HeadFormat(
        name="medusa-trt",
        description="this project's: shared or own unembeddings, root map, projection, token map",
        file=_SAFETENSORS,
        config=lambda facts: {
            **_name_base_model(facts),
            "hidden_size": facts.hidden_size,
            **({} if facts.vocab_size is None else {"vocab_size": facts.vocab_size}),
        },
        unembeddings=("own", "shared"),
        needs_biases=False,
        has_extra_maps=True,
        has_token_map=True,
    ),
    HeadFormat(
        name="fasterdecoding",
        description="FasterDecoding v0.1, heads alone",
        file=_PICKLE,
        config=_name_base_model,
        needs_base_model=True,
    ),
    HeadFormat(
        name="fasterdecoding-merged",
        description="FasterDecoding v1.0, a whole model with its heads",
        file="model-medusa-heads.safetensors",
        config=_state_counts,
        prefix="medusa_head.",
        backbone="weights",
    ),
    HeadFormat(
        name="peft",
        description="a PEFT adapter with the heads under modules_to_save",
        file="adapter_model.safetensors",
        config=lambda facts: {
            "base_model_name_or_path": facts.base_model,
            "bias": "none",
            "inference_mode": True,
            "modules_to_save": ["medusa_head"],
            "peft_type": "LORA",
            # PEFT adapts nothing where the targets have this name, and still loads the heads.
            "target_modules": "dummy-target-modules",
            "task_type": "CAUSAL_LM",
        },
        prefix="base_model.model.medusa_head.",
        config_file="adapter_config.json",
        needs_base_model=True,
    ),
    HeadFormat(
        name="shared",
        description='heads on the backbone\'s unembedding ("version 2")',
        file=_SAFETENSORS,
        config=lambda facts: _name_base_model(facts) | {"version": "2"},
        unembeddings=("shared",),
        needs_base_model=True,
    ),
    HeadFormat(
        name="tgi-v1",
        description="text-generation-inference, own unembeddings",
        file=_SAFETENSORS,
        config=_name_base_model,
        needs_base_model=True,
    ),
    HeadFormat(
        name="tgi-v2",
        description="text-generation-inference, the backbone's unembedding, one layer",
        file=_SAFETENSORS,
        config=lambda facts: _name_base_model(facts) | {"version": "2"},
        unembeddings=("shared",),
        max_layers=1,
        needs_base_model=True,
    ),
    HeadFormat(
        name="vllm",
        description="vLLM's draft model, also with a truncated vocabulary",
        file="model.safetensors",
        config=lambda facts: {
            # vLLM takes every key with "num" and "heads" or "layers" in it for these two.
            "architectures": ["MedusaModel"],
            "model_type": "medusa",
            "hidden_size": facts.hidden_size,
            "vocab_size": facts.vocab_size,
            "truncated_vocab_size": facts.draft_vocab_size or facts.vocab_size,
            "num_heads": facts.num_heads,
            "num_hidden_layers": facts.num_layers,
            "medusa_fc_bias": facts.has_biases,
            "original_lm_head": facts.unembedding == "common",
            "logit_scale": 1.0,
        },
        layout=VLLM,
        unembeddings=("common", "own"),
        needs_biases=False,
        has_token_map=True,
    ),
    HeadFormat(
        name="tensorrt-llm",
        description="TensorRT-LLM 0.x, the heads' part of a checkpoint",
        file="rank0.safetensors",
        config=lambda facts: {
            "architecture": "MedusaForCausalLM",
            "hidden_size": facts.hidden_size,
            "vocab_size": facts.vocab_size,
            "num_medusa_heads": facts.num_heads,
            "num_medusa_layers": facts.num_layers,
            "max_draft_len": MAX_DRAFT_LENGTH,
        },
        layout=TENSORRT_LLM,
        prefix="medusa_heads.",
    ),
    HeadFormat(
        name="modelopt",
        description="ModelOpt, a whole model with its heads",
        file="model-medusa-heads.safetensors",
        config=lambda facts: {
            "medusa": {
                "num_medusa_heads": facts.num_heads,
                "num_medusa_layers": facts.num_layers,
            }
        },
        prefix="medusa_heads.",
        backbone="weights",
    ),
    HeadFormat(
        name="mlc",
        description="MLC-LLM's draft model",
        file="model.safetensors",
        config=lambda facts: {
            "model_type": "medusa",
            **_state_counts(facts),
            "hidden_size": facts.hidden_size,
            "vocab_size": facts.vocab_size,
        },
        prefix="medusa_head.",
    ),
    HeadFormat(
        name="rtp-llm",
        description="RTP-LLM, to be put into the backbone's folder",
        file=_PICKLE,
        config=lambda facts: {"medusa_config": _state_counts(facts)},
        backbone="config",
    ),
)

FORMATS = {row.name: row for row in _ROWS}
"""Every format by its name."""
