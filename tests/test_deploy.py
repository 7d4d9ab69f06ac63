"""Deployment artifacts: what they say fits the bundle, and they are whole or not there."""

import re
import subprocess
from pathlib import Path

import pytest

from medusa_trt.cli import main
from medusa_trt.errors import BuildError
from medusa_trt.export.deploy import deploy
from medusa_trt.runtime.bundle import Bundle


def test_the_jetson_script_gives_every_free_input_a_range(
    jetson_bundle: Bundle, tmp_path: Path
) -> None:
    files = deploy(jetson_bundle, "jetson", tmp_path / "out")
    assert {file.name for file in files} == {
        "build_engines.sh",
        "requirements.txt",
        "health_check.sh",
    }
    script = (tmp_path / "out" / "build_engines.sh").read_text()
    for option in ("min", "opt", "max"):
        ranges = re.findall(rf"--{option}Shapes=(\S+)", script)
        for found, graph in zip(ranges, ("verify", "heads", "reduce"), strict=True):
            shapes = dict(each.split(":") for each in found.split(","))
            free = {
                tensor.name: tensor.shape
                for tensor in jetson_bundle.manifest.graphs[graph].inputs
                if any(isinstance(size, str) for size in tensor.shape)
            }
            assert shapes.keys() == free.keys()
            for name, shape in shapes.items():
                sizes = [int(size) for size in shape.split("x")]
                assert len(sizes) == len(free[name])
                for size, wanted in zip(sizes, free[name], strict=True):
                    assert size == wanted if isinstance(wanted, int) else size > 0


@pytest.mark.parametrize("kind", ["jetson", "container"])
def test_scripts_are_valid_shell_and_requirements_are_pinned(
    kind: str, jetson_bundle: Bundle, trt_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = jetson_bundle if kind == "jetson" else trt_bundle
    for file in deploy(bundle, kind, tmp_path / "out"):
        if file.suffix == ".sh":
            assert file.stat().st_mode & 0o111
            subprocess.run(["bash", "-n", file], check=True)
    lines = (tmp_path / "out" / "requirements.txt").read_text().splitlines()
    assert len(lines) > 3 and all("==" in line for line in lines)


def test_a_container_copies_what_is_there(trt_bundle: Bundle, tmp_path: Path) -> None:
    files = {file.name for file in deploy(trt_bundle, "container", tmp_path / "out")}
    text = (tmp_path / "out" / "Containerfile").read_text()
    copied = [name for line in re.findall(r"COPY (.*)", text) for name in line.split()[:-1]]
    assert set(copied) <= files | {"bundle"}
    assert "medusa-trt build bundle" in (tmp_path / "out" / "start.sh").read_text()


def test_mistakes_leave_nothing(
    trt_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BuildError, match="exported for tensorrt, kind jetson takes"):
        deploy(trt_bundle, "jetson", tmp_path / "out")
    with pytest.raises(BuildError, match="unknown kind 'cloud': choose jetson, container"):
        deploy(trt_bundle, "cloud", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    command = ["deploy", str(trt_bundle.path), "--kind", "container", "--output"]
    assert main([*command, str(tmp_path / "out")]) == 0
    assert main([*command, str(tmp_path / "out")]) == 2
    assert "exists: give another --output" in capsys.readouterr().err
