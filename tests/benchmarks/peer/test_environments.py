"""What is installed and made for the contenders, and what is said where that fails."""

import sys
from pathlib import Path

import pytest
from peer.environments import Environment, PeerError, PeerInstaller, read_last_line


def test_the_last_line_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"first\nlast \xff\n\n  \n")
    assert read_last_line(log) == "last \ufffd"
    log.write_bytes(b"")
    assert read_last_line(log) == "no output"


def test_an_environment_is_made_once_and_complete(tmp_path: Path) -> None:
    said: list[str] = []
    installer = PeerInstaller(tmp_path, said.append)
    environment = Environment(name="e", requirements=("no-such-package-of-ours==1",))
    (tmp_path / "e" / "bin").mkdir(parents=True)
    (tmp_path / "e" / ".complete").touch()
    assert installer.install_python(environment) == tmp_path / "e" / "bin" / "python"
    assert said == []


def test_a_command_that_fails_names_its_log(tmp_path: Path) -> None:
    installer = PeerInstaller(tmp_path, print)
    with pytest.raises(PeerError, match=r"it broke \(exit code 3, log: .*job\.log\)"):
        installer.run([sys.executable, "-c", "print('it broke'); exit(3)"], "job")


def test_a_model_gets_its_name_when_it_is_complete(tmp_path: Path) -> None:
    installer = PeerInstaller(tmp_path, lambda _: None)

    def fail(target: Path) -> None:
        target.write_text("half")
        raise PeerError("no space")

    with pytest.raises(PeerError, match="no space"):
        installer.make_once("model", fail, is_file=True)
    assert not (tmp_path / "model").exists()
    path = installer.make_once("model", lambda target: target.touch(), is_file=True)
    assert path.is_file() and [file.name for file in tmp_path.iterdir()] == ["model"]
