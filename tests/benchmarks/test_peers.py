"""The round of the contenders."""

from peers import drop_incomplete
from support.peer_replies import make_reply, make_report


def test_an_interruption_keeps_the_prompts_that_all_have_answered() -> None:
    report = make_report(
        [make_reply(name, 0, 1, [1]) for name in ("a", "b")] + [make_reply("a", 1, 1, [1])]
    )
    drop_incomplete(report)
    assert [(reply.contender, reply.prompt) for reply in report.replies] == [("a", 0), ("b", 0)]
