"""What the benchmark of steps times."""

from collections.abc import Callable
from functools import partial

from step_latency import make_host_work, make_prefill, name_actions, time_interleaved

from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.engines.ort_cpu import OrtEngine
from medusa_trt.tree_configs import load_tree


def test_actions_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    actions: dict[tuple[str, int, str], Callable[[], object]] = {
        ("b", 1, name): partial(order.append, name) for name in ("x", "y")
    }
    times = time_interleaved(actions, 2)
    assert order == ["x", "y"] * 3
    assert {key[2]: len(values) for key, values in times.items()} == {"x": 2, "y": 2}


def test_what_is_timed_has_a_name_and_runs(tiny_bundle: Bundle) -> None:
    engine = OrtEngine(tiny_bundle, capacity=600, num_threads=1)
    actions = name_actions(tiny_bundle, engine, 8)
    assert {"1", "64", "heads", "host", "prefill"} <= actions.keys()
    actions["heads"]()
    make_host_work(engine, load_tree("chain-3"), 8)()
    make_prefill(engine, 128)()
    engine.close()
