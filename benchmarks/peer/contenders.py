"""The contenders of `peers.py`: one row each, with its environment, model and options."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer.environments import GENAI, LLAMA_CPP, PeerInstaller

from medusa_trt.errors import MedusaError
from medusa_trt.runtime.bundle import Bundle

_LLAMA_CPP_PRECISIONS = ("q4_0", "q4_1", "q8_0")

_NUM_LOOKUP = 2
"""Tokens that llama.cpp drafts by prompt lookup, as llama-cpp-python's README advises for CPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A process that answers prompts.

    Attributes:
        name: name in the tables, without spaces.
        python: interpreter of its environment.
        worker: name of a module in `workers`.
        options: arguments of the worker's `load`, without the number of threads.
        takes_several: whether the worker has a `load_many` that takes these options.
    """

    name: str
    python: Path
    worker: str
    options: dict[str, Any]
    takes_several: bool = False


def set_up_contenders(
    installer: PeerInstaller,
    model: str,
    bundles: Sequence[Bundle],
    max_length: int,
    only: Sequence[str] | None,
    left_out: dict[str, str],
) -> list[Contender]:
    """Sets up the contenders; one that fails is added to `left_out` with the reason.

    Args:
        installer: makes environments and models.
        model: model that the other runtimes run.
        bundles: bundles that this project runs.
        max_length: tokens of the longest prompt with its reply.
        only: take only names that contain one of these; None takes all.
        left_out: receives names and reasons.

    Raises:
        MedusaError: no contender is left.
    """
    rows = {
        **_medusa_rows(bundles),
        **_llama_cpp_rows(installer, model, max_length),
        **_genai_rows(installer, model, max_length),
        **_transformers_rows(installer, model),
    }
    chosen = {
        name: row
        for name, row in rows.items()
        if only is None or any(part in name for part in only)
    }
    if not chosen:
        raise MedusaError(
            f"no contender's name contains {' or '.join(only or ())}: choose from {', '.join(rows)}"
        )
    contenders = []
    for name, row in chosen.items():
        try:
            python, worker, options = row()
        except MedusaError as error:
            installer.say(f"{name} left out: {error}")
            left_out[name] = str(error)
        else:
            several = worker != "transformers_worker" and not options.get("num_lookup")
            contenders.append(
                Contender(
                    name=name,
                    python=python,
                    worker=worker,
                    options=options,
                    takes_several=several,
                )
            )
    if not contenders:
        raise MedusaError("no contender could be set up: see the lines above")
    return contenders


_Row = Callable[[], tuple[Path, str, dict[str, Any]]]


def _medusa_rows(bundles: Sequence[Bundle]) -> dict[str, _Row]:
    def row(bundle: Bundle, tree: str | None) -> _Row:
        options = {"bundle": str(bundle.path), "tree": tree}
        return lambda: (Path(sys.executable), "medusa_worker", options)

    rows: dict[str, _Row] = {}
    for bundle in bundles:
        precision = bundle.manifest.target.precision
        if f"medusa-trt-{precision}-plain" in rows:
            raise MedusaError(f"two bundles are {precision}: give one of each precision")
        rows[f"medusa-trt-{precision}-plain"] = row(bundle, "plain")
        rows[f"medusa-trt-{precision}-medusa"] = row(bundle, None)
    return rows


def _llama_cpp_rows(installer: PeerInstaller, model: str, max_length: int) -> dict[str, _Row]:
    def row(precision: str, num_lookup: int) -> _Row:
        return lambda: (
            installer.install_python(LLAMA_CPP),
            "llama_cpp_worker",
            {
                "model": str(installer.make_gguf_file(model, precision)),
                "max_length": max_length,
                "num_lookup": num_lookup,
            },
        )

    rows = {f"llama.cpp-{precision}": row(precision, 0) for precision in _LLAMA_CPP_PRECISIONS}
    return rows | {"llama.cpp-q4_0-lookup": row("q4_0", _NUM_LOOKUP)}


def _genai_rows(installer: PeerInstaller, model: str, max_length: int) -> dict[str, _Row]:
    def row(precision: str) -> _Row:
        return lambda: (
            installer.install_python(GENAI),
            "genai_worker",
            {"model": str(installer.make_genai_folder(model, precision)), "max_length": max_length},
        )

    return {f"onnxruntime-genai-{precision}": row(precision) for precision in ("int4", "fp32")}


def _transformers_rows(installer: PeerInstaller, model: str) -> dict[str, _Row]:
    """They run in this project's environment, which has torch and transformers for the export."""

    def row(dtype: str) -> _Row:
        return lambda: (
            Path(sys.executable),
            "transformers_worker",
            {"model": str(installer.make_hugging_face_folder(model)), "dtype": dtype},
        )

    return {"transformers-fp32": row("float32"), "transformers-bf16": row("bfloat16")}
