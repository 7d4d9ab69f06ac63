"""The scripts for a Jetson: the shapes that trtexec gets are those of the graphs."""

import math
import re
import subprocess
from pathlib import Path

from medusa_trt.export.deploy.jetson import render_build_script, render_health_check
from medusa_trt.runtime.bundle import Bundle


def test_the_build_gives_every_free_input_a_range(jetson_bundle: Bundle) -> None:
    script = render_build_script(jetson_bundle)
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


def test_the_health_check_gives_trtexec_what_does_no_harm(
    jetson_bundle: Bundle, tmp_path: Path
) -> None:
    """Shapes within the profile, and zeros for token ids, lengths and rows."""
    file = tmp_path / "health_check.sh"
    file.write_text(render_health_check(jetson_bundle))
    file.chmod(0o755)
    calls, tools = tmp_path / "calls", tmp_path / "tools"
    tools.mkdir()
    trtexec = tools / "trtexec"
    trtexec.write_text(
        f"""#!/bin/sh
echo "$@" >> {calls}
for each in "$@"; do case $each in --loadInputs=*)
  for file in $(echo "${{each#*=}}" | tr , ' '); do
    path=${{file#*:}}
    echo "${{file%%:*}} $(tr -d '\\0' < "$path" | wc -c) $(wc -c < "$path")" >> {calls}
  done;; esac; done
"""
    )
    trtexec.chmod(0o755)
    environment = {"PATH": f"{tools}:/usr/bin:/bin"}
    subprocess.run([file], check=True, env=environment)
    lines = calls.read_text().splitlines()
    assert sum(line.startswith("--loadEngine=engines/") for line in lines) == 3
    script = render_build_script(jetson_bundle)
    for graph in ("verify", "heads", "reduce"):
        own = next(line for line in lines if f"engines/{graph}.engine" in line)
        shapes = re.findall(r"--shapes=(\S+)", own)
        assert shapes and f"--optShapes={shapes[0]}" in script.replace("'", "")
        sizes = {each.split(":")[0]: each.split(":")[1] for each in shapes[0].split(",")}
        for tensor in jetson_bundle.manifest.graphs[graph].inputs:
            if tensor.dtype == "int64":
                dims = sizes.get(tensor.name, "x".join(map(str, tensor.shape)))
                size_bytes = 8 * math.prod(map(int, dims.split("x")))
                assert f"{tensor.name} 0 {size_bytes}" in lines
