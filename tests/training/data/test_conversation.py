"""Chat templates, split into the text around the turns."""

import pytest
from support.tiny_models import EOS_ID, make_byte_tokenizer

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
