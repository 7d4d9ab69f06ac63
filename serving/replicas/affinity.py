"""Which replica a request goes to: the one that has read the beginning of its conversation."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

_NUM_CHARACTERS, _NUM_TOKENS = 256, 64
"""How much of a prompt that is no conversation counts as its beginning."""


def make_affinity_key(body: bytes) -> str:
    """Makes a key that all requests of one conversation share; "" if the body has no prompt.

    A conversation is known by its messages up to the first one of the user, which stay the same
    while it grows. So conversations with the same system message still spread over the replicas.
    """
    try:
        fields = json.loads(body)
    except ValueError:
        return ""
    if not isinstance(fields, dict):
        return ""
    beginning: Any = None
    if isinstance(messages := fields.get("messages"), list):
        roles = [message.get("role") for message in messages if isinstance(message, dict)]
        end = roles.index("user") + 1 if "user" in roles else len(messages)
        beginning = messages[:end]
    elif isinstance(prompt := fields.get("prompt"), str):
        beginning = prompt[:_NUM_CHARACTERS]
    elif isinstance(prompt, list):
        beginning = prompt[:_NUM_TOKENS]
    return _hash(json.dumps(beginning)) if beginning else ""


def rank_replicas(key: str, names: Sequence[str]) -> list[str]:
    """Orders replicas for a key, the preferred one first.

    This is rendezvous hashing: where a replica comes or goes, only the keys that prefer it move.
    """
    return sorted(names, key=lambda name: _hash(f"{key} {name}"))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
