"""The models that have a short name, and the files that are shipped for them."""

from pathlib import Path

import pytest
from jinja2 import Template

from medusa_trt.export.models.aliases import load_aliases
from medusa_trt.tree_configs import load_tree


@pytest.mark.parametrize("name", load_aliases())
def test_each_alias_names_what_exists(name: str) -> None:
    alias = load_aliases()[name]
    assert (alias.package is None) != (alias.repository is None)
    assert alias.repository is None or alias.repository.count("/") == 1
    if alias.tree is not None:
        assert load_tree(alias.tree).num_nodes > 1
    heads = alias.heads_source
    assert heads is None or isinstance(heads, str) or heads.is_file()


def test_vicunas_chat_template_is_that_of_fastchat() -> None:
    path = Path(__file__).parents[3] / "export/models/shipped" / "vicuna_chat_template.jinja"
    template = Template(path.read_text("utf-8"))
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "How?"},
    ]
    text = template.render(messages=turns, eos_token="</s>", add_generation_prompt=True)
    # FastChat joins "system USER: ... ASSISTANT: ...</s>USER: ... ASSISTANT:".
    assert text.endswith(" USER: Hello ASSISTANT: Hi!</s>USER: How? ASSISTANT:")
    assert text.startswith("A chat between a curious user and an artificial intelligence")
    system = [{"role": "system", "content": "Be brief."}, turns[0]]
    assert template.render(messages=system, eos_token="</s>") == "Be brief. USER: Hello "


def test_zephyrs_chat_template_is_that_of_its_model_card() -> None:
    path = Path(__file__).parents[3] / "export/models/shipped" / "zephyr_chat_template.jinja"
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    text = Template(path.read_text("utf-8")).render(
        messages=turns, eos_token="</s>", add_generation_prompt=True
    )
    assert text == "<|system|>\nBe brief.</s>\n<|user|>\nHello</s>\n<|assistant|>\n"
