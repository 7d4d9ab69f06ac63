"""Deployment artifacts: what they say fits the bundle, and they are whole or not there."""

import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement

from medusa_trt import __version__
from medusa_trt.errors import BuildError
from medusa_trt.export.deploy.deployment import PINS, deploy
from medusa_trt.runtime.bundle import Bundle


@pytest.mark.parametrize("kind", ["jetson", "container"])
def test_scripts_are_valid_shell_and_requirements_are_pinned(
    kind: str, jetson_bundle: Bundle, trt_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = jetson_bundle if kind == "jetson" else trt_bundle
    files = deploy(bundle, kind, tmp_path / "out")
    names = {"build_engines.sh", "requirements.txt", "health_check.sh"}
    assert kind != "jetson" or {file.name for file in files} == names
    for file in files:
        if file.suffix == ".sh":
            assert file.stat().st_mode & 0o111
            subprocess.run(["bash", "-n", file], check=True)
    lines = (tmp_path / "out" / "requirements.txt").read_text().splitlines()
    assert len(lines) > 3 and all("==" in line for line in lines if line[0] != "#")


@pytest.mark.parametrize("place", PINS)
def test_pins_are_what_the_package_asks_for(place: str) -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    extra = "tensorrt" if place == "jetson" else place
    lines = project["project"]["optional-dependencies"][extra] + project["project"]["dependencies"]
    asked = {each.name: each for each in map(Requirement, lines)}
    pinned = dict(line.split("==") for line in requirements(place) if line[0] != "#")
    own = pinned.pop(next(iter(pinned)))
    assert own == __version__
    if place == "jetson":  # with the system's TensorRT, and CUDA 12
        assert asked.keys() - pinned.keys() == {"tensorrt"}
        assert pinned.pop("cuda-python").startswith("12.6.")
    else:
        exact = {name for name, each in asked.items() if "==" in str(each.specifier)}
        assert asked.keys() - pinned.keys() <= exact, "neither pinned here nor by the extra"
    assert all(number in asked[name].specifier for name, number in pinned.items())


def requirements(place: str) -> list[str]:
    from medusa_trt.export.deploy.deployment import _requirements

    return _requirements(place).splitlines()


def test_a_container_copies_what_is_there(trt_bundle: Bundle, tmp_path: Path) -> None:
    files = {file.name for file in deploy(trt_bundle, "container", tmp_path / "out")}
    text = (tmp_path / "out" / "Containerfile").read_text()
    copied = [name for line in re.findall(r"COPY (.*)", text) for name in line.split()[:-1]]
    assert set(copied) <= files | {"bundle", "wheels"}
    assert (tmp_path / "out" / "wheels").is_dir()
    assert "medusa-trt build bundle" in (tmp_path / "out" / "start.sh").read_text()
    assert "g++" not in text


def test_the_image_has_the_python_of_the_wheel(trt_bundle: Bundle, tmp_path: Path) -> None:
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    for kind, python in (("container", own), ("triton", "3.12")):
        deploy(trt_bundle, kind, tmp_path / kind)
        text = (tmp_path / kind / "wheels" / "README.txt").read_text()
        assert f"python{python} -m pip wheel --no-deps --wheel-dir" in text
        assert "setup.py sdist --dist-dir" in text
    assert (
        f"FROM docker.io/library/python:{own}-slim"
        in (tmp_path / "container" / "Containerfile").read_text()
    )


@pytest.mark.parametrize("status", [200, 503])
def test_the_health_check_asks_the_server(status: int, trt_bundle: Bundle, tmp_path: Path) -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    deploy(trt_bundle, "container", tmp_path / "out")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    command = ["bash", str(tmp_path / "out/health_check.sh"), str(server.server_port)]
    done = subprocess.run(command, capture_output=True, text=True)
    thread.join()
    server.server_close()
    assert asked == ["/health"] and (done.returncode == 0) == (status == 200)
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1


def test_a_container_for_the_cpu_can_compile_the_operators(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    deploy(tiny_bundle, "container", tmp_path / "out")
    text = (tmp_path / "out" / "Containerfile").read_text()
    assert text.index("install --yes --no-install-recommends g++") < text.index("RUN pip")


def test_a_container_builds_engines_until_there_are_some(
    trt_bundle: Bundle, tmp_path: Path
) -> None:
    out, tools = tmp_path / "out", tmp_path / "tools"
    deploy(trt_bundle, "container", out)
    tools.mkdir()
    (tools / "medusa-trt").write_text('#!/bin/sh\necho "$@"\n')
    (tools / "medusa-trt").chmod(0o755)
    engines = out / "bundle" / "engines"
    (engines / "tensorrt-rtx-sm86").mkdir(parents=True)  # for another product
    (engines / "tensorrt-rtx-sm86" / "engines.json").touch()
    (engines / ".tensorrt-sm86.partial-1").mkdir()  # as a build leaves it that was killed

    def run(*arguments: str) -> list[str]:
        command, path = [str(out / "start.sh"), *arguments], f"{tools}:/usr/bin:/bin"
        done = subprocess.run(command, check=True, env={"PATH": path}, capture_output=True)
        return done.stdout.decode().splitlines()

    serve = "serve bundle --host 0.0.0.0 --port 8000"
    assert run() == ["build bundle", serve]
    (engines / "tensorrt-sm86").mkdir()
    (engines / "tensorrt-sm86" / "engines.json").touch()
    assert run() == [serve]
    assert run("--max-sequences", "2") == [f"{serve} --max-sequences 2"]
    assert run("medusa-trt", "bench", "bundle") == ["bench bundle"]


def test_deploying_again_keeps_the_bundle_that_was_copied_there(
    trt_bundle: Bundle, tmp_path: Path
) -> None:
    deploy(trt_bundle, "container", tmp_path / "out")
    (tmp_path / "out" / "bundle").mkdir()
    (tmp_path / "out" / "start.sh").write_text("old")
    deploy(trt_bundle, "container", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "bundle").is_dir()
    assert "medusa-trt" in (tmp_path / "out" / "start.sh").read_text()
    assert not list((tmp_path / "out").glob(".*"))


def test_mistakes_leave_nothing(trt_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="exported for tensorrt, kind jetson takes"):
        deploy(trt_bundle, "jetson", tmp_path / "out")
    with pytest.raises(BuildError, match="unknown kind 'cloud': choose jetson, container"):
        deploy(trt_bundle, "cloud", tmp_path / "out")
    with pytest.raises(BuildError, match=r"cannot write .*: .*/no is not a folder"):
        deploy(trt_bundle, "container", tmp_path / "no" / "out")
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    with pytest.raises(BuildError, match="out exists: give another --output, or --overwrite"):
        deploy(trt_bundle, "container", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
