"""Models, bundles and sessions that the tests share; each process makes them once."""

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from support.tiny_models import TINY_HEADS, save_tiny_heads, save_tiny_model

from medusa_trt import interrupts
from medusa_trt.export.models.base_model import BaseModel, load_base_model
from medusa_trt.export.models.source import source_from_name
from medusa_trt.export.pipeline import ExportOptions, export_bundle
from medusa_trt.interrupts import raise_interrupts
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import MedusaSession

# A shell's background job starts with Ctrl-C ignored, and so would the processes of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

PAPER_HEADS = (
    Path(__file__).parents[1] / "export/models/shipped" / "smollm2_135m_paper_heads.safetensors"
)

# No test may depend on the time that it takes: the machine may do other work.
hypothesis.settings.register_profile("medusa-trt", deadline=None)
hypothesis.settings.load_profile("medusa-trt")


@pytest.fixture
def interruptible(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes both signals raise, as they do in the process of a command, which then forgets them."""
    monkeypatch.setattr(interrupts, "_raised", [])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    raise_interrupts()
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights and a byte-level tokenizer, as a folder."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def base(tiny_model: Path) -> BaseModel:
    """The tiny model, loaded for one test, which may train it."""
    return load_base_model(source_from_name(str(tiny_model)))


@pytest.fixture(scope="session")
def tiny_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random heads for `tiny_model`, with two layers and an unembedding each."""
    return save_tiny_heads(tmp_path_factory.mktemp("heads") / TINY_HEADS)


@pytest.fixture(scope="session")
def tiny_export(
    tiny_model: Path, tiny_heads: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Bundle]:
    """A function that exports the tiny model with its heads for a target; takes `ExportOptions`."""

    def export(target: str, **options: Any) -> Bundle:
        output = tmp_path_factory.mktemp("bundles") / f"tiny-{target}"
        values: dict[str, Any] = {"model": str(tiny_model), "heads": tiny_heads} | options
        return export_bundle(ExportOptions(output=output, target=target, **values))

    return export


@pytest.fixture(scope="session")
def tiny_bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    """The tiny model exported with its heads and the tree of the paper, unquantized."""
    return tiny_export("ort-cpu", tree="mc_sim_7b_63", precision="fp32")


@pytest.fixture(scope="session")
def headless_bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    """The tiny model exported without heads, unquantized."""
    return tiny_export("ort-cpu", heads="none", tree="chain-3", precision="fp32")


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of `tiny_bundle` that one test may change."""
    return shutil.copytree(tiny_bundle.path, tmp_path / "tiny")


@pytest.fixture(scope="module")
def session(tiny_bundle: Bundle) -> Iterator[MedusaSession]:
    """A session on `tiny_bundle` with one thread."""
    with MedusaSession(tiny_bundle, num_threads=1) as session:
        yield session


@pytest.fixture(scope="session")
def trt_bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    """The tiny model exported for TensorRT at float16."""
    return tiny_export("tensorrt", tree="chain-3", max_length=320)


@pytest.fixture(scope="session")
def cuda_bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    """The tiny model exported for ONNX Runtime's CUDA provider at float16."""
    return tiny_export("ort-cuda", tree="chain-3", max_length=320)


@pytest.fixture(scope="session")
def jetson_bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    """The tiny model exported for TensorRT 10.3 with 4-bit weights."""
    return tiny_export("tensorrt-jetson", tree="chain-3", max_length=256, precision="int4")


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """SmolLM2-135M in the default precision, with four heads in the paper's form.

    Four heads are enough for every tree.
    """
    output = tmp_path_factory.mktemp("bundles") / "smollm2-135m"
    return export_bundle(
        ExportOptions(model="smollm2-135m", heads=PAPER_HEADS, tree="mc_sim_7b_63", output=output)
    )


@pytest.fixture(scope="session")
def base_model() -> BaseModel:
    return load_base_model(source_from_name("smollm2-135m"))
