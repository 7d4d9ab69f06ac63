"""Measures time and peak memory of an export, with random weights in the shape of a real model.

    python benchmarks/export_memory.py --shape vicuna-7b --precision int4 --folder FOLDER

A float16 checkpoint and a bundle are made in the folder and deleted afterwards; `--keep` keeps the
checkpoint for the next run. With `--random-weights`, the export makes its own weights without a
checkpoint. The export runs in another process. Its resident memory is read from Linux: the peak
with the pages of mapped files, which the system could drop, and the peak without them.

The result is one line of JSON.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from script import make_parser, report_errors
from transformers import PretrainedConfig

from medusa_trt.errors import MedusaError
from medusa_trt.export.models.random_weights import config_from_name
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.models.tokenizers import load_tokenizer
from medusa_trt.export.weights.streamed_model import make_empty_model

NUM_HEADS = 4
SAMPLE_S = 0.1
SHARD_BYTES = 1 << 30
TOKENIZER = "smollm2-135m"
_NUM_NOISE = (1 << 24) - 3


@report_errors
def main() -> int:
    """Makes a checkpoint, exports it and prints the measurements."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--shape",
        default="vicuna-7b",
        metavar="NAME",
        help="a shape of `medusa-export --random-weights`, or a folder with a config.json",
    )
    parser.add_argument("--target", default="ort-cpu", help="target of the export")
    parser.add_argument("--precision", default="int4", help="precision of the export")
    parser.add_argument(
        "--heads",
        choices=["own", "shared"],
        default="own",
        help="whether each head has its own unembedding or shares the backbone's",
    )
    parser.add_argument("--folder", type=Path, required=True, help="folder for temporary files")
    parser.add_argument("--random-weights", action="store_true", help="export without a checkpoint")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoint")
    arguments = parser.parse_args()
    config = config_from_name(arguments.shape, None)
    model, heads, bundle = (arguments.folder / name for name in ("model", "heads", "bundle"))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    words = ["--model", str(model), "--heads", str(heads)]
    if arguments.random_weights:
        words = ["--model", arguments.shape, "--random-weights"]
    elif not (model / "model.safetensors.index.json").is_file():
        shutil.rmtree(model, ignore_errors=True)
        make_checkpoint(model, config)
    if not arguments.random_weights:
        make_heads(heads, config, arguments.heads == "own")
    words += ["--output", str(bundle), "--target", arguments.target]
    words += ["--precision", arguments.precision, "--tree", "mc_sim_7b_63", "--overwrite"]
    try:
        names = ("shape", "target", "precision", "heads", "random_weights")
        facts = {name: getattr(arguments, name) for name in names}
        report = run_export(words) | {"bundle_gb": round(_size_bytes(bundle) / 1e9, 2)}
        print(json.dumps(facts | report))
    finally:
        for folder in (bundle, *([] if arguments.keep else [model, heads])):
            shutil.rmtree(folder, ignore_errors=True)
    return 0


def make_checkpoint(folder: Path, config: PretrainedConfig) -> None:
    """Writes sharded float16 safetensors and a real tokenizer."""
    folder.mkdir()
    model = make_empty_model(config)
    config.dtype, config.architectures = "float16", [type(model).__name__]
    # All weights repeat one block of noise, because time and memory do not depend on the values.
    noise = (torch.randn(_NUM_NOISE, generator=torch.Generator().manual_seed(0)) * 0.02).half()
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    size_bytes = 0
    parameters = list(model.named_parameters())
    for index, (name, parameter) in enumerate(parameters):
        tensor = torch.empty(parameter.shape, dtype=torch.float16)
        if parameter.ndim == 1:
            tensor.fill_(1)
        else:
            for part in tensor.view(-1).split(_NUM_NOISE):
                part.copy_(noise[: len(part)])
        shard[name] = tensor
        size_bytes += tensor.nbytes
        if size_bytes >= SHARD_BYTES or index == len(parameters) - 1:
            file = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
            shard, size_bytes = {}, 0
    config.save_pretrained(folder)
    tokenizer, _ = load_tokenizer(source_from_name(TOKENIZER))
    tokenizer.save_pretrained(folder)
    index_file = folder / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def make_heads(folder: Path, config: PretrainedConfig, with_unembeddings: bool) -> None:
    """Writes random heads with one layer, in the layout of the published checkpoints."""
    folder.mkdir(exist_ok=True)
    hidden_size = int(config.hidden_size)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"{head}.0.linear.{kind}": (torch.randn(size, generator=generator) * 0.02).half()
        for head in range(NUM_HEADS)
        for kind, size in (("weight", (hidden_size, hidden_size)), ("bias", (hidden_size,)))
    }
    if with_unembeddings:
        size = int(config.vocab_size), hidden_size
        for head in range(NUM_HEADS):
            tensors[f"{head}.1.weight"] = (torch.randn(size, generator=generator) * 0.02).half()
    save_file(tensors, folder / "medusa_lm_head.safetensors")


def run_export(words: list[str]) -> dict[str, object]:
    """Exports in another process, and measures its time and peak memory.

    Raises:
        MedusaError: the export failed; it has printed why.
    """
    start = time.perf_counter()
    peak = peak_without_files = 0
    with subprocess.Popen([sys.executable, "-m", "medusa_trt", "export", *words]) as process:
        while process.poll() is None:
            sizes = read_memory_bytes(process.pid, ["VmHWM", "RssAnon", "RssShmem"])
            peak = max(peak, sizes.pop("VmHWM", 0))
            peak_without_files = max(peak_without_files, sum(sizes.values()))
            time.sleep(SAMPLE_S)
    if process.returncode:
        raise MedusaError(f"the export failed with exit code {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "peak_resident_gib": round(peak / 2**30, 3),
        "peak_without_files_gib": round(peak_without_files / 2**30, 3),
    }


def read_memory_bytes(process_id: int, names: list[str]) -> dict[str, int]:
    """Reads a process's memory from Linux; an ended process has none.

    VmHWM is the largest resident size so far. RssAnon and RssShmem are the parts of the current
    size without files. (`ru_maxrss` of the children would start at the size of this process, from
    which they are forked.)
    """
    try:
        status = Path(f"/proc/{process_id}/status").read_text("utf-8")
    except OSError:
        return {}
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return {name: int(lines[name].split()[0]) * 1024 for name in names if name in lines}


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


if __name__ == "__main__":
    sys.exit(main())
