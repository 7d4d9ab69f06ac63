"""Checks of an engine against the host, where they can run: on the CPU."""

import numpy as np
import pytest

from medusa_trt.calibration.gpu_report.step_checks import check_reductions, check_trees
from medusa_trt.runtime.engines.base import VerifyOutputs
from medusa_trt.runtime.session import MedusaSession


def test_device_and_host_agree(session: MedusaSession) -> None:
    trees, reductions = check_trees(session), check_reductions(session)
    assert trees.agrees and "recorded steps repeat the first one: yes" in trees.text
    assert reductions.agrees and "192 of 192 draws are equal" in reductions.text


def test_a_step_that_differs_is_found(
    session: MedusaSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify, num_calls = session.engine.verify, 0

    def verify_wrongly(*arguments: object, **options: object) -> VerifyOutputs:
        nonlocal num_calls
        num_calls += 1
        outputs = verify(*arguments, **options)  # type: ignore[arg-type]
        if num_calls == 3 and outputs.logits is not None:
            outputs.logits[...] = np.roll(outputs.logits, 1, axis=-1)
        return outputs

    monkeypatch.setattr(session.engine, "verify", verify_wrongly)
    check = check_trees(session)
    assert not check.agrees and check.text.endswith("NO")
