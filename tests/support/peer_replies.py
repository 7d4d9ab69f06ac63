"""Replies and reports of contenders, made by hand."""

from peer.report import PeerReply, PeerReport

from medusa_trt.runtime.engines.machine import Machine


def make_report(replies: list[PeerReply]) -> PeerReport:
    return PeerReport(
        command="peers.py",
        date="",
        model="tiny",
        num_tokens=3,
        prompt_lengths=[4, 4],
        machine=Machine.detect(),
        versions={},
        left_out={"absent": "not [here]"},
        is_complete=True,
        replies=replies,
        loads=[],
    )


def make_reply(name: str, prompt: int, decode_s: float, token_ids: list[int]) -> PeerReply:
    return PeerReply(
        contender=name,
        threads=1,
        prompt=prompt,
        token_ids=token_ids,
        first_token_s=0.1,
        decode_s=decode_s,
        num_steps=1,
        peak_memory_bytes=10**6,
    )
