"""Worker for OpenVINO: the stateful model that OpenVINO GenAI runs, called as its pipeline does.

    python openvino_worker.py SOURCE FOLDER int8|int4

Run as a script, it converts a GGUF file in float16: OpenVINO GenAI reads it and NNCF compresses the
weights as optimum-intel does: int8 by row with zero points; int4 in symmetric groups of 128, where
the embedding and the unembedding are int8.
"""

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino

_NUM_IDS = 256


class _Sequence:
    """A request with a cache of its own.

    OpenVINO's cache can only be cut by copying it, so it grows here from step to step. It is read
    anew before it would be a third too long.
    """

    def __init__(self, request: Any, past: int) -> None:
        self._request, self._past, self._length = request, past, 0

    def fit(self, rows: int) -> None:
        """Reads the past if it is missing or too long."""
        if self._length < self._past or 3 * (self._length + rows) > 4 * (self._past + rows):
            self._request.reset_state()
            self._length = 0
            if self._past:
                self.evaluate(self._past, 1)

    def evaluate(self, rows: int, num_wanted: int) -> None:
        """Evaluates rows; takes the next token of the last ones."""
        self._length += rows
        inputs = {
            "input_ids": np.arange(rows)[None] % _NUM_IDS,
            "attention_mask": np.ones((1, self._length), np.int64),
            "position_ids": np.arange(self._length - rows, self._length)[None],
            "beam_idx": np.zeros(1, np.int32),
            "wanted": np.arange(rows - num_wanted, rows),
        }
        self._request.infer(inputs, share_inputs=True)
        self._request.get_output_tensor(0).data.argmax(-1)


def load_rows(
    model: str, threads: int, pasts: Sequence[int]
) -> tuple[list[str], Callable[[int, int, bool], Callable[[], object]]]:
    """Compiles the model, with a request for each past and one to read prompts; see `loop.py`."""
    network = openvino.Core().read_model(Path(model) / "openvino_model.xml")
    _take_wanted_rows(network)
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.compile_model(network, "CPU", options)
    sequences = {past: _Sequence(compiled.create_infer_request(), past) for past in (0, *pasts)}

    def prepare(rows: int, past: int, is_prefill: bool) -> Callable[[], object]:
        sequences[past].fit(rows)
        return lambda: sequences[past].evaluate(rows, 1 if is_prefill else rows)

    return ["openvino", "openvino-genai", "nncf"], prepare


def _take_wanted_rows(network: Any) -> None:
    """Gives the model an input with the rows whose logits it computes, as GenAI does."""
    node = network.get_results()[0]
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    ops = openvino.opset13
    wanted = ops.parameter([-1], np.int64, name="wanted")
    wanted.output(0).set_names({"wanted"})
    rows = ops.gather(node.input_value(0), wanted, ops.constant(np.int64(1)))
    node.input(0).replace_source_output(rows.output(0))
    network.add_parameters([wanted])
    network.validate_nodes_and_infer_types()


def convert(source: str, folder: str, precision: str) -> int:
    """Converts a GGUF file to a folder with the model; returns 0."""
    import nncf
    import openvino_genai

    unpacked = Path(folder) / "float16"
    unpacked.mkdir()
    (unpacked / "model.gguf").symlink_to(Path(source).resolve())
    openvino_genai.LLMPipeline(str(unpacked / "model.gguf"), "CPU", enable_save_ov_model=True)
    network = openvino.Core().read_model(unpacked / "openvino_model.xml")
    modes = nncf.CompressWeightsMode
    options: dict[str, Any] = {"mode": modes.INT8_ASYM}
    if precision == "int4":
        options = {"mode": modes.INT4_SYM, "ratio": 1.0, "group_size": 128}
    network = nncf.compress_weights(network, **options)
    openvino.save_model(network, Path(folder) / "openvino_model.xml")
    shutil.rmtree(unpacked)
    return 0


if __name__ == "__main__":
    sys.exit(convert(*sys.argv[1:]))
