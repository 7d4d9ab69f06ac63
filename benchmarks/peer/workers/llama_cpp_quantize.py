"""Converts a GGUF file to another precision, with the default settings of llama.cpp's tool.

python llama_cpp_quantize.py SOURCE TARGET PRECISION
"""

import ctypes
import sys

import llama_cpp

PRECISIONS = {
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
}


def main() -> int:
    """Quantizes the file; the exit code is 0 on success."""
    source, target, precision = sys.argv[1:]
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = PRECISIONS[precision], True
    llama_cpp.llama_backend_init()
    return int(
        llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    )


if __name__ == "__main__":
    sys.exit(main())
