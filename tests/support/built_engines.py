"""Engines of TensorRT, built and run by the stand-ins."""

import importlib.util
from pathlib import Path

import msgspec
import pytest
from support.stand_ins.fake_cuda import FakeCuda
from support.stand_ins.fake_tensorrt import FakeTensorRT

from medusa_trt.export.tensorrt.build import build_engines
from medusa_trt.export.tensorrt.options import BuildOptions
from medusa_trt.export.tensorrt.products import ProductSpec
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.engine_record import (
    RECORD_FILE,
    Product,
    record_from_folder,
)
from medusa_trt.runtime.engines.tensorrt import TrtEngine
from medusa_trt.tree_configs import MedusaTree

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt-rtx is not installed: pip install 'medusa-trt[tensorrt-rtx]'",
)

PROMPT = "the quick brown fox jumps over the lazy dog. the quick brown "
TREE = MedusaTree.from_choices([(0,), (1,), (0, 0), (0, 1), (0, 0, 0)], name="six")


class BuiltEngines:
    """Engines of a bundle, built and run by the stand-ins.

    Attributes:
        messages: what the build printed.
    """

    def __init__(
        self, bundle: Bundle, folder: Path, *, product: Product = "tensorrt", **options: int | bool
    ) -> None:
        self.bundle, self.cuda, self.product = bundle, FakeCuda(), product
        self.module = FakeTensorRT(self.cuda)
        if product == "tensorrt-rtx":
            self.module.of_rtx()
            options["target"] = product  # type: ignore[assignment]
        self.messages: list[str] = []
        self.folder = folder / "engines"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ProductSpec, "load", lambda _: self.module)
            patch.setattr("medusa_trt.export.tensorrt.build.read_capability", lambda _: "8.6")
            build_engines(
                bundle,
                BuildOptions(output=self.folder, **options),  # type: ignore[arg-type]
                self.messages.append,
            )

    def open_engine(
        self, engine_class: type[TrtEngine] = TrtEngine, **arguments: object
    ) -> TrtEngine:
        """Opens the engine, with these arguments changed."""
        values = {
            "product": self.product,
            "module": self.module,
            "cuda": self.cuda,
            "folder": self.folder,
            **arguments,
        }
        return engine_class(self.bundle, **values)  # type: ignore[arg-type]

    def change(self, **changes: object) -> None:
        """Changes fields of the record."""
        record = msgspec.structs.replace(record_from_folder(self.folder), **changes)
        (self.folder / RECORD_FILE).write_bytes(msgspec.json.encode(record))
