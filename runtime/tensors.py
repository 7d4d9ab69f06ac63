"""Names of a bundle's files and of its graphs' tensors, written only here."""

MANIFEST_FILE = "manifest.json"
TREE_FILE = "medusa_choices.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
GENERATION_CONFIG_FILE = "generation_config.json"
WEIGHTS_FILE = "weights.data"
GRAPH_FILES = {
    "verify": "verify.onnx",
    "verify_batch": "verify_batch.onnx",
    "heads": "heads.onnx",
    "reduce": "reduce.onnx",
    "tree": "tree.onnx",
}
"""The ONNX file of each graph."""

INPUT_IDS = "input_ids"
TREE_MASK = "tree_mask"
POSITION_OFFSETS = "position_offsets"
PAST_LENGTH = "past_length"
ROWS = "rows"
CACHE_POSITIONS = "cache_positions"
ARGMAX = "argmax"
HIDDEN = "hidden"
LOGITS = "logits"
ROOT_IDS = "root_ids"
DRAFT_IDS = "draft_ids"
DRAFT_LOGPROBS = "draft_logprobs"
CANDIDATES = "candidates"
PARENT_ROWS = "parent_rows"
UNIFORMS = "uniforms"
TEMPERATURE = "temperature"
NUM_SORTED = "num_sorted"
CUT_TOP_K = "cut_top_k"
TOP_K = "top_k"
TOP_P = "top_p"
MIN_P = "min_p"
SAMPLED = "sampled"
COVERED = "covered"
ENTROPY = "entropy"
CANDIDATE_LOGPROB = "candidate_logprob"

PAST = "past_key_values."
"""Prefix of the names of all cache inputs."""


def past_name(layer: int, kind: str) -> str:
    """Name of a layer's cache input; `kind` is "key" or "value"."""
    return f"{PAST}{layer}.{kind}"


def present_name(layer: int, kind: str) -> str:
    """Name of a layer's cache output, bound to the same memory as its input."""
    return f"present.{layer}.{kind}"
