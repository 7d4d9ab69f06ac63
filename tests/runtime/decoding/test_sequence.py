"""What is remembered of the drafts of one sequence."""

from medusa_trt.runtime.decoding.sequence import DraftRecord


def test_copied_tokens_count_up_to_the_first_wrong_one() -> None:
    record = DraftRecord()
    record.add_copied([1, 2, 3, 4], [1, 2, 9])
    assert record.copies_right == 0.97 * 3 + 1 and record.copies_tried == 0.97 * 4 + 1
    assert record.later_right == 0.97 * 7 + 1 and record.later_tried == 0.97 * 8 + 2
    before = record.later_tried
    record.add_copied([1, 2, 3, 4], [1, 2])  # Nothing was wrong, so nothing more was compared.
    assert record.later_tried == 0.97 * before + 1
    before = record.later_tried
    record.add_copied([1, 2], [3])  # No later token was compared.
    assert record.later_tried == 0.97 * before


def test_shares_follow_what_happens_lately() -> None:
    right, wrong = DraftRecord(), DraftRecord()
    for _ in range(200):
        right.add_copied([1, 2], [1, 2, 3])
        wrong.add_copied([1, 2], [3])
        right.add_grown(2, 1.0)
        wrong.add_grown(0, 1.0)
    assert right.copied_share > 0.99 and wrong.copied_share < 0.01 and right.later_share > 0.99
    assert right.trust > 1.95 and wrong.trust < 0.05
