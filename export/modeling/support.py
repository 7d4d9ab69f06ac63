"""Which models can be exported, and what a user should know of the export."""

import torch
from torch import nn
from transformers import PreTrainedModel

from medusa_trt.errors import ExportError, MedusaError, describe_error
from medusa_trt.export.modeling.attention_probe import (
    find_attention_problem,
)
from medusa_trt.export.modeling.dense_experts import find_experts_problem, has_experts
from medusa_trt.export.modeling.rotary import find_longrope_length

_LAYER_TYPES = {"attention", "full_attention", "sliding_attention", "chunked_attention"}


def refuse_unsupported(model: PreTrainedModel, max_length: int) -> None:
    """Refuses a model that the verify graph cannot compute; the model must be able to run.

    Raises:
        ExportError: the model has an unsupported feature, which is named, or does not run.
    """
    try:
        problem = _find_problem_in_config(model) or find_attention_problem(model, max_length)
    except MedusaError:
        raise
    except Exception as error:  # The model's own code may raise any exception.
        if "meta tensor" in str(error):
            problem = "weights that are read outside the call of their layer"
            raise _make_unsupported_error(model, problem) from error
        raise ExportError(
            f"this {model.config.model_type} model does not run ({type(error).__name__}: "
            f"{describe_error(error)}): its config may not fit, or it is of a kind that is not "
            "supported"
        ) from error
    if problem is not None:
        raise _make_unsupported_error(model, problem)


def _make_unsupported_error(model: PreTrainedModel, problem: str) -> ExportError:
    return ExportError(
        f"{model.config.model_type} models with {problem} are not supported: use a model without "
        "it, or open an issue"
    )


def list_notices(model: PreTrainedModel, max_length: int) -> list[str]:
    """Lists sentences that tell the user how the export treats the model."""
    config, texts = model.config, []
    if (short_length := find_longrope_length(config)) is not None:
        if max_length > short_length:
            texts.append(
                f"LongRoPE rotates every text by its long factors, as --max-length is {max_length}:"
                f" Hugging Face rotates texts of up to {short_length} tokens by the short ones"
            )
        else:
            texts.append(
                f"LongRoPE rotates by its short factors: --max-length above {short_length} would "
                "rotate every text by the long ones, other than Hugging Face"
            )
    if has_experts(model):
        texts.append(
            "every expert computes every token, which is exact and slow, and the model is loaded "
            "whole into memory"
        )
    return texts


def _find_problem_in_config(model: PreTrainedModel) -> str | None:
    layer_types = set(getattr(model.config, "layer_types", None) or ())
    other_types = layer_types - _LAYER_TYPES
    rotary = getattr(model.base_model, "rotary_emb", None)
    problem = None
    if not getattr(model, "_supports_attention_backend", False):
        problem = "attention outside the attention interface of transformers"
    elif model._is_stateful and not layer_types:
        problem = "a state other than keys and values"
    elif other_types:
        problem = f"layers of another kind than attention ({', '.join(sorted(other_types))})"
    elif not isinstance(rotary, nn.Module):
        problem = "positions other than rotary embeddings"
    elif not isinstance(getattr(rotary, "rope_type", None), dict) and torch.is_tensor(
        rotary(torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.int64))
    ):
        problem = "a rotary embedding of complex numbers"  # one table, not cosines and sines
    return problem or find_experts_problem(model)
