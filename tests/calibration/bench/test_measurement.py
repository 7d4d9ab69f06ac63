"""How a benchmark measures replies."""

from typing import Any

import pytest

from medusa_trt.calibration.bench import measurement
from medusa_trt.calibration.bench.measurement import check_runnable, measure_replies
from medusa_trt.calibration.bench.options import BenchOptions
from medusa_trt.calibration.bench.summary import (
    summarize,
)
from medusa_trt.calibration.prompts import (
    BenchPrompt,
)
from medusa_trt.calibration.replies import generate_whole_reply
from medusa_trt.errors import PromptError, TreeError
from medusa_trt.runtime.session import Generation, GenerationOptions, MedusaSession
from medusa_trt.tree_configs import load_tree


def test_what_cannot_work_is_refused_before_it_starts(session: MedusaSession) -> None:
    prompt = BenchPrompt("long one", "", ("word " * 60, "word"))
    with pytest.raises(PromptError, match=r"prompt long one needs up to \d+ tokens"):
        check_runnable(session, [prompt], BenchOptions(max_new_tokens=128))
    check_runnable(session, [prompt], BenchOptions(max_new_tokens=32))
    with pytest.raises(TreeError, match="drafts nothing"):
        check_runnable(session, [prompt], BenchOptions(tree=load_tree("plain")))
    with pytest.raises(TreeError):
        check_runnable(session, [prompt], BenchOptions(tree=load_tree("chain-9")))


def test_the_thresholds_reach_typical_acceptance(
    session: MedusaSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[GenerationOptions] = []

    def generate(session: MedusaSession, prompt: Any, options: GenerationOptions) -> Generation:
        used.append(options)
        return generate_whole_reply(session, prompt, options)

    monkeypatch.setattr(measurement, "generate_whole_reply", generate)
    options = BenchOptions(
        compared=("typical",), max_new_tokens=3, posterior_threshold=0.2, posterior_alpha=0.4
    )
    list(measure_replies(session, [BenchPrompt("a", "", ("hello",))], options))
    (typical,) = [each for each in used if each.rule == "typical"]
    assert (typical.posterior_threshold, typical.posterior_alpha) == (0.2, 0.4)


def test_measuring_interleaves_and_reuses_the_conversation(session: MedusaSession) -> None:
    prompts = [BenchPrompt("a", "", ("hello", "go on")), BenchPrompt("b", "", ("other",))]
    options = BenchOptions(compared=("greedy", "typical"), max_new_tokens=6, rounds=2)
    rows = list(measure_replies(session, prompts, options))
    assert [(row.round, row.prompt_id) for row in rows] == (
        [(1, "a")] * 8 + [(1, "b")] * 4 + [(2, "a")] * 8 + [(2, "b")] * 4
    )
    orders = [
        [row.mode for row in rows if (row.round, row.prompt_id) == at and row.turn == 1]
        for at in ((1, "a"), (1, "b"), (2, "a"), (2, "b"))
    ]
    names = [mode.name for mode in options.modes]
    assert orders == [names, [*names[1:], names[0]], names[::-1], [names[0], *names[:0:-1]]]
    assert all(row.cached_tokens == 0 for row in rows if row.turn == 1)
    assert all(row.cached_tokens > 5 for row in rows if row.turn == 2)
    assert summarize(rows, options.modes).differences == ()
