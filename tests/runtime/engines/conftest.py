"""Engines of TensorRT that several test files run on stand-ins."""

import pytest
from support.built_engines import BuiltEngines

from medusa_trt.runtime.bundle import Bundle


@pytest.fixture(scope="module")
def trt_engines(trt_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> BuiltEngines:
    return BuiltEngines(trt_bundle, tmp_path_factory.mktemp("trt"), max_batch_size=3)


@pytest.fixture(scope="module")
def jetson_engines(jetson_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> BuiltEngines:
    return BuiltEngines(jetson_bundle, tmp_path_factory.mktemp("jetson"))
