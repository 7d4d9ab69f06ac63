"""Stop texts in which special tokens occur."""

from medusa_trt.runtime.text.stop_texts import find_stop_texts

SPECIAL = {7: "<s>", 8: "<s>>", 9: "<t>"}


def test_each_special_token_of_a_stop_text_has_a_mark() -> None:
    found = find_stop_texts(["a<s>b", "<s>>", "c"], SPECIAL, [])
    assert set(found.shown) == {7, 8}
    assert found.texts == (
        "a<s>b", "<s>>", "c", f"a{found.shown[7]}b", found.shown[8],
    )  # fmt: skip
    assert "a{}b{}".format(*found.shown.values()).translate(found.cleaned) == "ab"


def test_what_a_reply_shows_stays_shown() -> None:
    found = find_stop_texts(["x<s>"], SPECIAL, [7, 9])
    assert found.shown[9] == "<t>"
    assert found.shown[7].translate(found.cleaned) == "<s>"


def test_ordinary_stop_texts_need_no_mark() -> None:
    found = find_stop_texts(["x"], SPECIAL, [])
    assert (found.texts, found.shown, found.cleaned) == (("x",), {}, {})
