"""A model repository for Triton Inference Server."""

import json
from importlib import resources

from medusa_trt.runtime.bundle import Bundle

MODEL_NAME = "medusa"
TRITON_IMAGE = "nvcr.io/nvidia/tritonserver:25.09-py3"

_BODY = {"text_input": "hello", "sampling_parameters": json.dumps({"max_new_tokens": 1})}
HEALTH_CHECK = (
    "# Succeeds where the server answers a prompt with one token. Argument: its HTTP port.",
    f"python3 - \"http://localhost:${{1:-8000}}/v2/models/{MODEL_NAME}/generate\" <<'END'",
    "import sys, urllib.request",
    f"body = {json.dumps(_BODY).encode()!r}",
    "urllib.request.urlopen(sys.argv[1], data=body, timeout=50).read()",
    "END",
)
"""Lines of a shell script."""

_INPUTS = {
    "text_input": "TYPE_STRING",
    "messages": "TYPE_STRING",
    "sampling_parameters": "TYPE_STRING",
    "stream": "TYPE_BOOL",
}
_OUTPUTS = {
    "text_output": "TYPE_STRING",
    "finish_reason": "TYPE_STRING",
    "num_input_tokens": "TYPE_UINT32",
    "num_output_tokens": "TYPE_UINT32",
}


def config_text(bundle: Bundle, bundle_path: str) -> str:
    """The repository's `config.pbtxt`: one request at a time, any number of responses.

    Args:
        bundle: what will be served.
        bundle_path: where it will lie.
    """
    on_cpu = bundle.manifest.target.name == "ort-cpu"
    group = "kind: KIND_CPU" if on_cpu else "kind: KIND_GPU, gpus: [ 0 ]"
    lines = [
        f'name: "{MODEL_NAME}"',
        'backend: "python"',
        "max_batch_size: 0",
        "model_transaction_policy { decoupled: true }",
        *(
            f'input {{ name: "{name}", data_type: {kind}, dims: [ 1 ], optional: true }}'
            for name, kind in _INPUTS.items()
        ),
        *(
            f'output {{ name: "{name}", data_type: {kind}, dims: [ 1 ] }}'
            for name, kind in _OUTPUTS.items()
        ),
        f"instance_group {{ count: 1, {group} }}",
        f'parameters {{ key: "bundle", value: {{ string_value: "{bundle_path}" }} }}',
    ]
    return "\n".join(lines) + "\n"


def model_text() -> str:
    """The repository's `model.py`."""
    return (resources.files("medusa_trt.export.deploy") / "triton_model.py").read_text("utf-8")
