"""Self-distillation data: the replies of a model to prompts, and their shards on disk."""
