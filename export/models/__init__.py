"""From a model's name to its config, tokenizer and weights."""
