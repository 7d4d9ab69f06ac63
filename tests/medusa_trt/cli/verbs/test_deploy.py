"""`medusa-trt deploy` as a user meets it; tests/export/deploy has what it writes."""

from typing import get_args, get_type_hints

import pytest
from support.terminal.command_line import refusal

from medusa_trt.cli.verbs.deploy import DeployArguments
from medusa_trt.export.deploy.deployment import KINDS


def test_the_verb_offers_every_kind() -> None:
    assert set(get_args(get_type_hints(DeployArguments)["kind"])) == set(KINDS)


def test_another_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "deploy", "bundle", "--kind", "cloud")
    names = "container, compose, kubernetes, ray, triton, jetson"
    assert message == f"error: --kind is 'cloud': choose from {names}"
