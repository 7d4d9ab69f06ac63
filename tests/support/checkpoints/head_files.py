"""Head checkpoints as the public tools write them, key by key, without the code under test.

`content` has FasterDecoding's names: `{head}.{layer}.linear.weight`, `{head}.{num_layers}.weight`.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

BASE_MODEL = "owner/base"


def num_heads(content: Tensors) -> int:
    return 1 + max(int(key.split(".")[0]) for key in content if key[0].isdigit())


def num_layers(content: Tensors) -> int:
    return sum(key.startswith("0.") and key.endswith("linear.weight") for key in content)


def write_json(path: Path, **content: object) -> None:
    path.write_text(json.dumps(content))


def medusa_config(content: Tensors) -> dict[str, object]:
    return {"medusa_num_heads": num_heads(content), "medusa_num_layers": num_layers(content)}


def fasterdecoding(folder: Path, content: Tensors, _: Path) -> None:
    torch.save(content, folder / "medusa_lm_head.pt")
    write_json(folder / "config.json", base_model_name_or_path=BASE_MODEL, **medusa_config(content))


def tgi_v1(folder: Path, content: Tensors, _: Path) -> None:
    save_file(content, folder / "medusa_lm_head.safetensors")
    write_json(folder / "config.json", base_model_name_or_path=BASE_MODEL, **medusa_config(content))


def shared(folder: Path, content: Tensors, _: Path) -> None:
    save_file(content, folder / "medusa_lm_head.safetensors")
    write_json(
        folder / "config.json",
        base_model_name_or_path=BASE_MODEL,
        version="2",
        **medusa_config(content),
    )


def medusa_trt(folder: Path, content: Tensors, _: Path) -> None:
    save_file(content, folder / "medusa_lm_head.safetensors")
    write_json(folder / "config.json", **medusa_config(content))


def merged(folder: Path, content: Tensors, model: Path) -> None:
    """One safetensors file of everything, as `save_pretrained` writes a small model."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    backbone = load_file(folder / "model.safetensors")
    heads = {f"medusa_head.{key}": tensor for key, tensor in content.items()}
    save_file(backbone | heads, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", **config, **medusa_config(content))


def modelopt(folder: Path, content: Tensors, model: Path) -> None:
    """Two shards and an index, the heads in the second one."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    backbone = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    heads = {f"medusa_heads.{key}": tensor for key, tensor in content.items()}
    weight_map: dict[str, str] = {}
    for index, tensors in enumerate((backbone, heads), 1):
        name = f"model-0000{index}-of-00002.safetensors"
        save_file(tensors, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    write_json(folder / "model.safetensors.index.json", weight_map=weight_map)
    config = json.loads((folder / "config.json").read_text())
    medusa = {"num_medusa_heads": num_heads(content), "num_medusa_layers": num_layers(content)}
    write_json(folder / "config.json", **config, medusa=medusa)


def peft(folder: Path, content: Tensors, _: Path) -> None:
    heads = {f"base_model.model.medusa_head.{key}": tensor for key, tensor in content.items()}
    save_file(heads, folder / "adapter_model.safetensors")
    write_json(
        folder / "adapter_config.json",
        base_model_name_or_path=BASE_MODEL,
        modules_to_save=["medusa_head"],
        peft_type="LORA",
        target_modules="dummy-target-modules",
        task_type="CAUSAL_LM",
    )


def vllm(folder: Path, content: Tensors, _: Path, *, vocab_size: int | None = None) -> None:
    layers, tensors = num_layers(content), {}
    for key, tensor in content.items():
        parts = key.split(".")
        if key == "token_map":
            tensors[key] = tensor
        elif parts[2] == "linear":
            tensors[f"blocks.{parts[0]}.layers.{parts[1]}.{parts[3]}"] = tensor
        else:
            assert int(parts[1]) == layers
            tensors[f"lm_heads.{parts[0]}.weight"] = tensor
    rows = content[f"0.{layers}.weight"].shape[0]
    save_file(tensors, folder / "model.safetensors")
    write_json(
        folder / "config.json",
        model_type="medusa",
        architectures=["MedusaModel"],
        num_heads=num_heads(content),
        num_hidden_layers=layers,
        hidden_size=content["0.0.linear.weight"].shape[0],
        vocab_size=vocab_size or rows,
        truncated_vocab_size=rows,
        medusa_fc_bias="0.0.linear.bias" in content,
        original_lm_head=False,
        logit_scale=1.0,
    )


def tensorrt_llm(folder: Path, content: Tensors, _: Path) -> None:
    layers, tensors = num_layers(content), {}
    for key, tensor in content.items():
        head, layer, *rest = key.split(".")
        name = f"medusa_layers.{layer}.linear.{rest[-1]}" if len(rest) == 2 else "lm_head.weight"
        tensors[f"medusa_heads.{head}.{name}"] = tensor
    save_file(tensors, folder / "rank0.safetensors")
    write_json(
        folder / "config.json",
        architecture="MedusaForCausalLM",
        num_medusa_heads=num_heads(content),
        num_medusa_layers=layers,
        max_draft_len=63,
        hidden_size=content["0.0.linear.weight"].shape[0],
        vocab_size=content[f"0.{layers}.weight"].shape[0],
    )


def mlc(folder: Path, content: Tensors, _: Path) -> None:
    heads = {f"medusa_head.{key}": tensor for key, tensor in content.items()}
    save_file(heads, folder / "model.safetensors")
    write_json(
        folder / "config.json",
        model_type="medusa",
        hidden_size=content["0.0.linear.weight"].shape[0],
        vocab_size=content[f"0.{num_layers(content)}.weight"].shape[0],
        **medusa_config(content),
    )


def rtp_llm(folder: Path, content: Tensors, model: Path) -> None:
    torch.save(content, folder / "medusa_lm_head.pt")
    config = json.loads((model / "config.json").read_text())
    write_json(folder / "config.json", **config, medusa_config=medusa_config(content))


WRITERS: dict[str, Callable[[Path, Tensors, Path], None]] = {
    "medusa-trt": medusa_trt,
    "fasterdecoding": fasterdecoding,
    "fasterdecoding-merged": merged,
    "peft": peft,
    "shared": shared,
    "tgi-v1": tgi_v1,
    "tgi-v2": shared,
    "vllm": vllm,
    "tensorrt-llm": tensorrt_llm,
    "modelopt": modelopt,
    "mlc": mlc,
    "rtp-llm": rtp_llm,
}


def all_tensors(folder: Path) -> Tensors:
    """Every tensor in a folder, by its name."""
    found: Tensors = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            found |= load_file(file)
        elif file.suffix in (".pt", ".bin"):
            found |= torch.load(file, weights_only=True)
    return found


def config_of(folder: Path) -> dict[str, object]:
    """The config in a folder, the adapter's if there is one."""
    adapter = folder / "adapter_config.json"
    path = adapter if adapter.is_file() else folder / "config.json"
    content: dict[str, object] = json.loads(path.read_text())
    return content


def write_heads(name: str, folder: Path, tensors: Tensors, model: Path) -> Path:
    """Writes heads into a new folder in one of the public formats."""
    folder.mkdir(parents=True, exist_ok=True)
    WRITERS[name](folder, tensors, model)
    return folder


def change_config(folder: Path, **values: object) -> None:
    """Changes values of the config beside the heads."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
