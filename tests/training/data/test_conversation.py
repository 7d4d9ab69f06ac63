"""Chat templates, split into the text around the turns."""

import pytest
from support.tiny_models import EOS_ID, make_byte_tokenizer
from tokenizers import processors

from medusa_trt.errors import TrainingError
from medusa_trt.training.data.conversation import ChatFrame


def test_a_template_is_taken_apart_and_put_together_again() -> None:
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = (
        "<s>{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    frame = ChatFrame.from_tokenizer(tokenizer)
    opening = frame.encode_opening(tokenizer, "Hi")
    reply = [*tokenizer("Fine")["input_ids"], EOS_ID]
    ids = opening + reply + frame.encode_next_turn(tokenizer, reply, "So?")
    messages = [("user", "Hi"), ("assistant", "Fine"), ("user", "So?")]
    expected = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert tokenizer.decode(ids) == expected
    cut = [*tokenizer("Fine")["input_ids"]]
    assert opening + cut + frame.encode_next_turn(tokenizer, cut, "So?") == ids
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(TrainingError, match="does not show every turn"):
        ChatFrame.from_tokenizer(tokenizer)


def test_an_end_token_that_the_tokenizer_adds_is_left_out() -> None:
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", EOS_ID)]
    )
    frame = ChatFrame.from_tokenizer(tokenizer)
    start, *hi = frame.encode_opening(tokenizer, "hi")
    assert start == 256 and hi == tokenizer.encode("hi", add_special_tokens=False)
    assert frame.encode_opening(tokenizer, "hi</s>")[-1] == EOS_ID
