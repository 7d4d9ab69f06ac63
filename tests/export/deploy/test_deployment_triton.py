"""The model repository for Triton: its config is Triton's, and its scripts fit what is written."""

import importlib.util
import json
import re
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from medusa_trt.export.deploy.deployment import deploy
from medusa_trt.runtime.bundle import Bundle

_CLIENT = importlib.util.find_spec("tritonclient")
needs_tritonclient = pytest.mark.skipif(
    _CLIENT is None, reason="tritonclient is not installed: pip install --no-deps tritonclient"
)


@pytest.fixture(scope="module")
def repository(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("triton") / "out"
    deploy(tiny_bundle, "triton", output)
    (output / "bundle").symlink_to(tiny_bundle.path)
    return output


def load_forms() -> Any:
    """Loads the form of configs by its path, because the package itself wants grpc."""
    assert _CLIENT is not None and _CLIENT.origin is not None
    path = Path(_CLIENT.origin).parent / "grpc/model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_tritonclient
@pytest.mark.parametrize("fixture", ["tiny_bundle", "cuda_bundle", "trt_bundle"])
def test_the_config_is_tritons(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from google.protobuf import text_format

    forms = load_forms()
    deploy(request.getfixturevalue(fixture), "triton", tmp_path / "out")
    text = (tmp_path / "out/models/medusa/config.pbtxt").read_text()
    config = text_format.Parse(text, forms.ModelConfig())
    assert config.name == "medusa" and config.backend == "python" and not config.max_batch_size
    assert config.model_transaction_policy.decoupled
    assert config.parameters["bundle"].string_value == "/app/bundle"
    assert all(each.optional for each in config.input)
    kind = forms.ModelInstanceGroup.Kind.Name(config.instance_group[0].kind)
    assert kind == ("KIND_CPU" if fixture == "tiny_bundle" else "KIND_GPU")


def test_the_scripts_fit_what_is_written(repository: Path) -> None:
    text = (repository / "Containerfile").read_text()
    copied = [name for line in re.findall(r"COPY (.*)", text) for name in line.split()[:-1]]
    assert {name for name in copied if not (repository / name).exists()} == set()
    subprocess.run(["bash", "-n", repository / "start.sh"], check=True)
    assert "medusa-trt build" not in (repository / "start.sh").read_text()


@pytest.mark.parametrize("status", [200, 503])
def test_the_health_check_asks_the_model(status: int, repository: Path) -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, json.loads(body)))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("localhost", 0), Handler)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    command = ["bash", str(repository / "health_check.sh"), str(server.server_port)]
    found = subprocess.run(command, capture_output=True)
    thread.join()
    server.server_close()
    assert (found.returncode == 0) == (status == 200)
    body = {"text_input": "hello", "sampling_parameters": '{"max_new_tokens": 1}'}
    assert asked == [("/v2/models/medusa/generate", body)]
