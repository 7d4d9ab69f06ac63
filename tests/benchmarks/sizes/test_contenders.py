"""The models of the contenders of real sizes."""

import sys
from pathlib import Path
from typing import ClassVar

import pytest
from peer.environments import Environment, PeerInstaller
from sizes import contenders as module
from sizes.contenders import FORMATS, make_contenders


class RecordingInstaller(PeerInstaller):
    """Notes the commands that it would run."""

    commands: ClassVar[dict[str, list[str]]] = {}

    def install_python(self, environment: Environment) -> Path:
        return Path(environment.name)

    def run(self, command: list[str], name: str, variables: object = None) -> None:  # type: ignore[override]
        if "float16.gguf" in " ".join(command):
            assert (self.folder / "float16.gguf").exists(), "it is deleted only at the end"
        self.commands[name] = command


def test_each_format_gets_the_same_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def write(path: Path, config: object) -> None:
        path.touch()
        written.append(config.num_hidden_layers)  # type: ignore[attr-defined]

    monkeypatch.setattr(module, "write_random_gguf", write)
    installer = RecordingInstaller(tmp_path, lambda _: None)
    made = make_contenders(installer, tmp_path, "llama-3.2-1b", 3, FORMATS, (256,))
    assert list(made) == list(FORMATS) and written == [3]
    assert not (tmp_path / "float16.gguf").exists()
    for form, contender in made.items():
        model = Path(contender.options["model"])
        command = installer.commands[model.name]
        assert str(model) in command and form.precision in command
        assert contender.options["pasts"] == [256]
        is_own = form.runtime == "medusa-trt"
        assert (command[0] == sys.executable) == is_own
        assert ("--random-weights" in command) == is_own
    assert len({contender.worker for contender in made.values()}) == 3
