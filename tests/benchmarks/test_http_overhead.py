"""The pairs of replies over HTTP and without it, on the tiny model."""

import http_overhead

from medusa_trt.runtime.bundle import Bundle


def test_both_ways_give_the_same_replies(tiny_bundle: Bundle) -> None:
    pairs, is_same = http_overhead.measure(tiny_bundle.path, num_rounds=1, num_tokens=8)
    assert is_same
    assert [len(values) for values in pairs.values()] == [4, 4]
    table = http_overhead.make_overhead_table(pairs, 8)
    assert table.row_count == 2
