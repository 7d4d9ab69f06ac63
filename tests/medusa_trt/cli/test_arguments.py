"""Arguments that several verbs have."""

import pytest

from medusa_trt.cli.arguments import BundleArguments, SessionArguments
from medusa_trt.errors import EngineError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.backends import BACKENDS


def test_a_session_is_opened_with_its_arguments(tiny_bundle: Bundle) -> None:
    arguments = BundleArguments(bundle=tiny_bundle.path)
    with SessionArguments(num_threads=1, max_length=100).open(arguments.bundle) as session:
        assert session.max_length == 100
    with pytest.raises(EngineError, match="unknown backend 'gpu'"):
        SessionArguments(backend="gpu").open(tiny_bundle.path)


def test_the_help_names_every_backend() -> None:
    text = " ".join((SessionArguments.__doc__ or "").split())
    assert all(name in text for name in BACKENDS)
