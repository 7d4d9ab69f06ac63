"""`medusa-trt models` as a user meets it."""

import json

import pytest

from medusa_trt.cli.main import main
from medusa_trt.cli.verbs.models import VERBS
from medusa_trt.export.models.aliases import load_aliases


def test_the_verb_takes_no_bundle() -> None:
    assert VERBS["models"].make_parser("models").usage == "models [options]"


def test_models_lists_every_alias(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == load_aliases().keys()
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    for alias in load_aliases().values():  # none is cut
        assert (alias.repository or "") in shown and (alias.heads or "") in shown
