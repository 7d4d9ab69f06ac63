"""The names of all verbs. It imports none of them."""

from importlib import import_module
from typing import Any

from medusa_trt.cli.parser import Verb

HELP = {
    "export": "make a bundle from a model and its Medusa heads",
    "generate": "reply to a prompt",
    "chat": "hold a conversation in the terminal",
    "serve": "answer requests over HTTP, as OpenAI's API does",
    "bench": "compare the speed of Medusa with that of plain decoding",
    "calibrate": "measure this machine, and choose the best tree for it",
    "calibrate heads": "measure how often the heads' drafts are right",
    "calibrate latency": "measure the time of a step by its number of nodes",
    "calibrate tree": "choose the fastest draft tree for this machine",
    "calibrate threshold": "choose the thresholds of typical acceptance",
    "calibrate quantization": "choose a format for each weight matrix",
    "build": "build TensorRT engines from a bundle",
    "gpu-report": "check and measure a bundle on a GPU, in one folder to send back",
    "deploy": "write what a device or a container needs to run a bundle",
    "inspect": "show what a bundle holds, and what it needs to run",
    "verify": "compare a bundle with the model that it was made from",
    "heads": "show what head checkpoints hold, and convert them",
    "heads inspect": "show what a head checkpoint holds",
    "heads convert": "write heads in another format",
    "card": "write the model card of a bundle or of heads",
    "push": "upload a bundle or heads to the Hugging Face hub",
    "train": "train heads for a model on its own replies",
    "train data": "let the model reply to prompts: the data to train on",
    "train heads": "train heads while the model stays as it is (Medusa-1)",
    "train joint": "train heads and the model together (Medusa-2)",
    "train measure": "measure heads on replies to other prompts",
    "models": "list the models that have a short name",
    "completion": "print a script for the completion of a shell",
    "doctor": "show what this machine can run, and what to install",
}
"""One line for each verb; `VERBS` of the verb's module has what it does.

The module of a verb is imported when the verb is called, so that no verb waits for the others.
"""


_MODULES = {
    "card": "verbs.sharing",
    "push": "verbs.sharing",
    "completion": "completion",
    "gpu-report": "gpu_report",
}
"""The modules of verbs that are not called as the first word is."""


def verb_from_name(name: str) -> Verb[Any]:
    """The verb that `HELP` lists by this name."""
    word, _, _ = name.partition(" ")
    module = import_module(f"medusa_trt.cli.{_MODULES.get(word, f'verbs.{word}')}")
    verb: Verb[Any] = module.VERBS[name]
    return verb
