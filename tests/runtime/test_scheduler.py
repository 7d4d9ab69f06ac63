"""Requests that come and go: each gets the reply that it gets alone, and nothing is left behind."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.table_session import session_on_table, with_eos

from medusa_trt.errors import EngineError, MedusaError, ProcessorError, QueueFullError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.options import GenerationOptions, SamplingOptions
from medusa_trt.runtime.processors.penalties import RepetitionPenalty
from medusa_trt.runtime.reply import Generation
from medusa_trt.runtime.scheduler import Scheduler
from medusa_trt.tree_configs import MedusaTree, load_tree

BEGINNINGS = ([1, 2, 3] * 10, [4, 5] * 12, [6])

OPTIONS = st.builds(
    GenerationOptions,
    max_new_tokens=st.integers(1, 25),
    tree=st.sampled_from([None, load_tree("plain"), load_tree("chain-3")]),
    lookup_ngram=st.sampled_from([0, 2]),
    sampling=st.builds(
        SamplingOptions,
        temperature=st.sampled_from([0.0, 0.0, 0.7, 1.2]),
        top_k=st.sampled_from([0, 5]),
        seed=st.integers(0, 9),
    ),
    logprobs=st.sampled_from([None, None, 2]),
    processors=st.sampled_from([(), (), (RepetitionPenalty(penalty=1.3),)]),
    stop=st.sampled_from([(), ("e",)]),
)


@dataclass
class Running:
    """A request of a test, and what came of it."""

    prompt: list[int]
    options: GenerationOptions
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    generation: Generation | None = None
    error: MedusaError | None = None


class Requests(RuleBasedStateMachine):
    """Adds, cancels and steps requests in any order."""

    exported: ClassVar[Bundle]

    @initialize(batch_size=st.integers(1, 4), new_trees=st.booleans(), seed=st.integers(0, 3))
    def open(self, batch_size: int, new_trees: bool, seed: int) -> None:
        self.seed, self.new_trees = seed, new_trees
        self.session, self.engine = session_on_table(
            self.exported, seed=seed, batch_size=batch_size, takes_new_trees=new_trees
        )
        self.scheduler = Scheduler(self.engine, self.session.decoder, max_pause_ms=0.001)
        self.requests: dict[int, Running] = {}

    @rule(
        beginning=st.sampled_from(BEGINNINGS),
        rest=st.lists(st.integers(0, 255), min_size=1, max_size=30),
        options=OPTIONS,
        priority=st.integers(0, 2),
    )
    def add(
        self, beginning: list[int], rest: list[int], options: GenerationOptions, priority: int
    ) -> None:
        prompt = [*beginning, *rest]
        number = self.scheduler.add(self.session.make_request(prompt, options), priority=priority)
        self.requests[number] = Running(prompt, options)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        self.scheduler.cancel(data.draw(st.sampled_from(sorted(self.requests))))

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self._take(self.scheduler.step())

    @invariant()
    def no_more_run_than_there_are_slots(self) -> None:
        if hasattr(self, "scheduler"):
            assert self.scheduler.num_running <= self.engine.batch_size

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(3000):
            if self.scheduler.is_idle:
                break
            self._take(self.scheduler.step())
        assert self.scheduler.is_idle and self.scheduler.num_running == 0
        for request in self.requests.values():
            generation = request.generation
            assert generation is not None and request.error is None
            alone, _ = session_on_table(
                self.exported, seed=self.seed, takes_new_trees=self.new_trees
            )
            expected = alone.generate(request.prompt, request.options)
            assert generation.token_ids == request.token_ids
            if generation.finish_reason != "cancelled":
                assert generation.token_ids == expected.token_ids
                assert generation.text == request.text == expected.text
                assert generation.finish_reason == expected.finish_reason
                assert generation.logprobs == expected.logprobs
            else:
                assert generation.token_ids == expected.token_ids[: len(generation.token_ids)]

    def _take(self, events: Sequence[Any]) -> None:
        for number, event, error in events:
            request = self.requests[number]
            assert request.generation is None, "an event after the last one"
            request.token_ids += event.token_ids
            request.text += event.text
            request.generation, request.error = event.generation, error


def test_every_reply_is_the_one_that_its_request_gets_alone(tiny_bundle: Bundle) -> None:
    Requests.exported = with_eos(tiny_bundle, list(range(0, 300, 17)))
    Requests.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
    Requests.TestCase("runTest").runTest()


def test_a_request_joins_while_others_run_and_a_long_prompt_is_read_in_parts(
    tiny_bundle: Bundle,
) -> None:
    session, _ = session_on_table(with_eos(tiny_bundle, []), batch_size=2)
    scheduler = Scheduler(session.engine, session.decoder, max_pause_ms=0.0001)
    options = GenerationOptions(max_new_tokens=30, tree=load_tree("plain"))
    first = scheduler.add(session.make_request([1, 2], options))
    while not scheduler.step():
        pass
    second = scheduler.add(session.make_request(list(range(64)), options))
    steps_until_token, seen = 0, {first: 0, second: 0}
    while not seen[second]:
        for event in scheduler.step():
            seen[event.request_id] += len(event.event.token_ids)
        steps_until_token += 1
    assert steps_until_token == 64 // 16
    assert seen[first] == steps_until_token


def test_requests_of_higher_priority_are_taken_first_and_the_queue_has_an_end(
    tiny_bundle: Bundle,
) -> None:
    session, _ = session_on_table(with_eos(tiny_bundle, []))
    scheduler = Scheduler(session.engine, session.decoder, max_waiting=3)
    options = GenerationOptions(max_new_tokens=2, tree=load_tree("plain"))
    numbers = [
        scheduler.add(session.make_request([index + 1], options), priority=priority)
        for index, priority in enumerate((0, 0, 5))
    ]
    with pytest.raises(QueueFullError, match="3 requests wait already"):
        scheduler.add(session.make_request([9], options))
    ends = []
    while not scheduler.is_idle:
        ends += [e.request_id for e in scheduler.step() if e.event.generation is not None]
    assert ends == [numbers[2], numbers[0], numbers[1]]


def test_an_engine_error_ends_the_running_requests_and_the_others_go_on(
    tiny_bundle: Bundle,
) -> None:
    session, engine = session_on_table(with_eos(tiny_bundle, []), batch_size=2)
    scheduler = session.scheduler
    options = GenerationOptions(max_new_tokens=8, tree=load_tree("plain"))
    numbers = [scheduler.add(session.make_request([n, 2, 3], options)) for n in range(4)]
    engine.fail_at_step = 5
    ends = {}
    while not scheduler.is_idle:
        for number, event, error in scheduler.step():
            if event.generation is not None:
                ends[number] = event.generation, error
    failed = [number for number in numbers if ends[number][1] is not None]
    assert failed == numbers[:2]
    for number in numbers:
        generation, error = ends[number]
        alone = session.generate([number - numbers[0], 2, 3], options)
        assert generation.token_ids == alone.token_ids[: len(generation.token_ids)]
        assert generation.token_ids
        if number in failed:
            assert isinstance(error, EngineError) and generation.finish_reason == "error"
        else:
            assert generation.token_ids == alone.token_ids


def test_a_tree_too_large_for_a_neighbours_slot_steps_alone(tiny_bundle: Bundle) -> None:
    session, engine = session_on_table(
        with_eos(tiny_bundle, []), batch_size=2, takes_new_trees=True
    )
    large = MedusaTree.from_choices([[0], *([0, child] for child in range(9))])
    engine.capacity = 200 + 4
    prompts = [([1, 2, 3] * 60, load_tree("plain")), ([4, 5], large)]
    numbers = {}
    for prompt, tree in prompts:
        options = GenerationOptions(max_new_tokens=19, tree=tree, lookup_ngram=0)
        numbers[session.scheduler.add(session.make_request(prompt, options))] = prompt, options
    ends = {}
    while not session.scheduler.is_idle:
        for number, event, error in session.scheduler.step():
            assert error is None
            if event.generation is not None:
                ends[number] = event.generation.token_ids
    for number, (prompt, options) in numbers.items():
        assert ends[number] == session.generate(prompt, options).token_ids


class Failing:
    """A processor that cannot go on after some tokens."""

    def __init__(self, left: int) -> None:
        self.left = left

    def start(self, prompt_ids: Sequence[int]) -> "Failing":
        return Failing(self.left)

    def process(self, logits: Any) -> None:
        if self.left == 0:
            raise ProcessorError("it cannot go on")
        self.left -= 1

    def accept(self, token: int) -> None:
        pass


def test_an_error_of_one_processor_leaves_the_neighbours_alone(tiny_bundle: Bundle) -> None:
    session, _ = session_on_table(with_eos(tiny_bundle, []), batch_size=3)
    scheduler = session.scheduler
    options = GenerationOptions(max_new_tokens=12, tree=load_tree("chain-3"))
    failing = replace(options, processors=(Failing(5),))
    prompts = [[1, 2], [3, 4], [5, 6]]
    numbers = [
        scheduler.add(session.make_request(prompt, failing if index == 1 else options))
        for index, prompt in enumerate(prompts)
    ]
    ends = {}
    while not scheduler.is_idle:
        for number, event, error in scheduler.step():
            if event.generation is not None:
                ends[number] = event.generation, error
    for number, prompt in zip(numbers, prompts, strict=True):
        generation, error = ends[number]
        whole = session.generate(prompt, options).token_ids
        if number == numbers[1]:
            assert isinstance(error, ProcessorError)
            assert 0 < len(generation.token_ids) <= 5
            assert generation.token_ids == whole[: len(generation.token_ids)]
        else:
            assert error is None and generation.token_ids == whole


def test_ctrl_c_in_a_step_ends_what_runs_and_the_queue_goes_on(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, engine = session_on_table(with_eos(tiny_bundle, []))
    scheduler = session.scheduler
    options = GenerationOptions(max_new_tokens=5, tree=load_tree("plain"))
    numbers = [scheduler.add(session.make_request([n, 2], options)) for n in (1, 2)]
    commit = engine.commit

    def interrupted(*args: Any) -> None:
        monkeypatch.setattr(engine, "commit", commit)
        raise KeyboardInterrupt

    scheduler.step()
    monkeypatch.setattr(engine, "commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scheduler.step()
    ends = {}
    while not scheduler.is_idle:
        for event in scheduler.step():
            if event.event.generation is not None:
                ends[event.request_id] = event.event.generation
    assert ends[numbers[0]].finish_reason == "cancelled"
    assert ends[numbers[1]].token_ids == session.generate([2, 2], options).token_ids
