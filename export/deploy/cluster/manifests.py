"""Manifests of a served bundle."""

import re

from medusa_trt import __version__
from medusa_trt.export.deploy.templates import render_template
from medusa_trt.export.targets import TARGETS
from medusa_trt.runtime.bundle import Bundle

_MAX_SEQUENCES = 4
_GRACE_S = 30
_LEAVE_S = 15
"""Seconds for a server's end besides its grace period: the load balancer forgets it first."""

_SPARE_ROWS = 64
_RUNTIME_BYTES = 512 * 2**20
"""Python, the engine's libraries and the values of a step; 330 MiB with SmolLM2-135M on a CPU."""

_START_S, _BUILD_S = 300, 3600
"""Longest start: of a server, and of one that first builds TensorRT's engines for its GPU."""

_MAX_NAME = 40


def render_kubernetes(bundle: Bundle) -> dict[str, str]:
    """Renders the manifests for Kubernetes, and KServe's form beside them."""
    return _render(bundle, ("kubernetes.yaml", "kserve.yaml", "prometheus_adapter.yaml"))


def render_compose(bundle: Bundle) -> dict[str, str]:
    """Renders the file for Docker Compose."""
    return _render(bundle, ("compose.yaml",))


def render_ray(bundle: Bundle) -> dict[str, str]:
    """Renders the config for Ray Serve."""
    return _render(bundle, ("serve_config.yaml",))


def estimate_memory_bytes(bundle: Bundle, max_sequences: int = _MAX_SEQUENCES) -> int:
    """Estimates what a server takes: the weights, the KV cache of all sequences, the runtime."""
    weights = bundle.manifest.files["weights.data"].size_bytes
    rows = bundle.manifest.model.max_length + _SPARE_ROWS
    return weights + max_sequences * bundle.count_cache_bytes(rows) + _RUNTIME_BYTES


def _render(bundle: Bundle, names: tuple[str, ...]) -> dict[str, str]:
    target = bundle.manifest.target.name
    memory_mib = -(-estimate_memory_bytes(bundle) // 2**20)
    name = re.sub(r"[^a-z0-9]+", "-", bundle.manifest.model.name.lower()).strip("-")[:_MAX_NAME]
    builds_engines = TARGETS[target].product is not None
    values = {
        "name": name.rstrip("-") or "medusa",
        "image": f"{name.rstrip('-') or 'medusa'}:{__version__}",
        "uses_gpu": target != "ort-cpu",
        "builds_engines": builds_engines,
        "max_sequences": _MAX_SEQUENCES,
        "grace_s": _GRACE_S,
        "termination_s": _GRACE_S + _LEAVE_S,
        "start_s": _BUILD_S if builds_engines else _START_S,
        "memory_mib": memory_mib,
        "limit_mib": memory_mib * 5 // 4,
    }
    return {each: render_template(f"cluster/{each}", values) for each in names}
