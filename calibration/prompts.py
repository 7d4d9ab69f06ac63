"""Prompts that the demo model wrote itself, free of outside licences."""

from importlib import resources

import msgspec


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One user turn."""

    id: int
    prompt: str


def self_generated_prompts() -> list[Prompt]:
    """The 1,086 prompts that ship with the package, in file order."""
    data = (resources.files("medusa_trt.calibration") / "prompts.jsonl").read_bytes()
    return msgspec.json.decode(b"[" + b",".join(data.splitlines()) + b"]", type=list[Prompt])
