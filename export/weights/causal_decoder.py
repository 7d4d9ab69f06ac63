"""A causal language model around a decoder for which transformers has none."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class DecoderForCausalLM(PreTrainedModel, GenerationMixin):
    """A decoder of text with an unembedding.

    Some decoders are in transformers only as a part of a model of several kinds of input, such as
    those of Qwen2-VL and GLM-4V.
    """

    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: PretrainedConfig, decoder: PreTrainedModel | None = None) -> None:
        """Takes a decoder or makes one, and makes an unembedding without a bias."""
        # The decoder is made first: transformers notes in the config what its class can do.
        decoder = AutoModel.from_config(config) if decoder is None else decoder
        super().__init__(config)
        self.model = decoder
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._supports_attention_backend = self.model._supports_attention_backend
        self._is_stateful = self.model._is_stateful
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """Leaves it to the decoder how experts are computed."""
        return True

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Computes the logits (B, T, vocab) of the last tokens, or of all for 0.

        The arguments are those of every causal language model of transformers.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=options.pop("past_key_values", None) if cache is None else cache,
            use_cache=use_cache,
            **options,
        )
        is_count = isinstance(logits_to_keep, int)
        rows = slice(-logits_to_keep, None) if is_count else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, rows])
        return CausalLMOutputWithPast(
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
