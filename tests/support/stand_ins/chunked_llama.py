"""A Llama in whose layers a token sees its own chunk of the text alone, as in those of Llama 4."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.masking_utils import create_chunked_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM


class ChunkedLlamaConfig(LlamaConfig):
    """A config with `layer_types` and `attention_chunk_size`."""

    model_type = "chunked_llama"
    attention_chunk_size: int | None = None
    layer_types: list[str] | None = None


class ChunkedLlamaModel(LlamaModel):
    """Gives all layers the chunked mask."""

    config_class = ChunkedLlamaConfig

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: None = None,
        **options: object,
    ) -> BaseModelOutputWithPast:
        """See `LlamaModel`."""
        embedded = self.embed_tokens(input_ids)
        mask = create_chunked_causal_mask(
            config=self.config,
            inputs_embeds=embedded,
            attention_mask=attention_mask,
            cache=None,
            position_ids=position_ids,
        )
        result: BaseModelOutputWithPast = super().forward(
            attention_mask=mask, position_ids=position_ids, inputs_embeds=embedded, **options
        )
        return result


class ChunkedLlama(LlamaForCausalLM):
    """A causal language model of these layers."""

    config_class = ChunkedLlamaConfig

    def __init__(self, config: ChunkedLlamaConfig) -> None:
        """Makes the layers."""
        super().__init__(config)
        self.model = ChunkedLlamaModel(config)
        self.post_init()  # type: ignore[no-untyped-call]


AutoConfig.register("chunked_llama", ChunkedLlamaConfig)
AutoModelForCausalLM.register(ChunkedLlamaConfig, ChunkedLlama)
