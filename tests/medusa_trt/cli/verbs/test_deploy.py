"""`medusa-trt deploy` as a user meets it; tests/export/deploy has what it writes."""

from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from support.terminal.command_line import refusal, run

from medusa_trt.cli.verbs.deploy import DeployArguments
from medusa_trt.export.deploy.deployment import KINDS
from medusa_trt.runtime.bundle import Bundle


def test_the_verb_offers_every_kind() -> None:
    assert set(get_args(get_type_hints(DeployArguments)["kind"])) == set(KINDS)


def test_another_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "deploy", "bundle", "--kind", "cloud")
    names = "container, compose, kubernetes, ray, triton, jetson"
    assert message == f"error: --kind is 'cloud': choose from {names}"


def test_a_folder_that_exists_is_kept_unless_told_otherwise(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["deploy", tiny_bundle.path, "--kind", "container", "--output", tmp_path / "out"]
    assert run(capsys, *command)[0] == 0
    assert "exists: give another --output" in refusal(capsys, *command)
    assert run(capsys, *command, "--overwrite")[0] == 0
