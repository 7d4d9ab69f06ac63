"""The choice of formats against trying every combination."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from support.format_options import Sites, cost, every_choice, sites

from medusa_trt.calibration.quantization.frontier import Frontier, Option, frontier_from_options


@given(sites())
def test_the_frontier_is_what_no_combination_beats(options: Sites) -> None:
    choices = every_choice(options)
    best = sorted(
        {
            (size, kl)
            for size, kl, _ in choices
            if not any(
                other_size <= size and other_kl <= kl and (other_size, other_kl) != (size, kl)
                for other_size, other_kl, _ in choices
            )
        }
    )
    frontier = frontier_from_options(options)
    assert list(zip(frontier.sizes.tolist(), frontier.kls.tolist(), strict=True)) == best
    for index, expected in enumerate(best):
        assert cost(options, frontier.formats(index)) == expected


@given(sites(), st.integers(0, 100), st.integers(0, 256))
def test_budgets_are_met_by_the_best_combination(options: Sites, size: int, kl: int) -> None:
    choices, frontier, max_kl = every_choice(options), frontier_from_options(options), kl / 64
    index = frontier.find_within_size(size)
    kls = [sum_kl for bytes_, sum_kl, _ in choices if bytes_ <= size]
    assert (index is None) == (not kls)
    assert index is None or frontier.kls[index] == min(kls)
    index = frontier.find_within_kl(max_kl)
    sizes = [bytes_ for bytes_, sum_kl, _ in choices if sum_kl <= max_kl]
    assert (index is None) == (not sizes)
    assert index is None or frontier.sizes[index] == min(sizes)


def test_every_layer_of_a_large_model_can_be_chosen_for() -> None:
    sizes: Sequence[int] = (48, 16, 86, 43)
    options: Sites = {}
    for number in range(128):
        weights, kl = sizes[number % 4] << 20, 1 / (3 + number)
        options[str(number)] = [
            Option("int4", weights * 18 // 32, kl),
            Option("int8", weights * 33 // 32, kl / 200),
            Option("fp16", weights * 2, 0.0),
        ]
    choices = frontier_from_options(options)
    assert isinstance(choices, Frontier) and len(choices) > 1000
    whole = cost(options, choices.formats(len(choices) - 1))
    assert whole == (2 * sum(sizes) * 32 << 20, 0.0)
