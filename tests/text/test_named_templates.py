"""Several templates of one model: which is taken, as transformers has it."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from app.errors import RequestError
from app.text.chat_template import ChatTemplate

MESSAGES = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]
NAMED = {"tool_use": "tools: {{ messages[0].content }}", "rag": "rag: {{ messages[0].content }}"}
DEFAULT = "default: {{ messages[0].content }}"


@pytest.mark.parametrize("name", [None, "default", "tool_use", "rag"])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_the_template_is_the_one_that_transformers_takes(
    name: str | None, tools: list[dict[str, object]] | None
) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    theirs.chat_template = {"default": DEFAULT, **NAMED}
    expected = theirs.apply_chat_template(MESSAGES, tools=tools, chat_template=name, tokenize=False)
    assert ChatTemplate(DEFAULT, named=NAMED).render(MESSAGES, tools=tools, template=name) == expected


def test_a_name_of_the_settings_goes_before_the_usual_ones_and_behind_the_requests() -> None:
    template = ChatTemplate(DEFAULT, named=NAMED, preferred="rag")
    assert template.render(MESSAGES) == template.render(MESSAGES, tools=TOOLS) == "rag: Hi"
    assert template.render(MESSAGES, template="default") == "default: Hi"
    with pytest.raises(ValueError, match="no chat template 'other'; it has 'default' and 'rag' and 'tool_use'"):
        ChatTemplate(DEFAULT, named=NAMED, preferred="other")
    with pytest.raises(ValueError, match="no chat template 'default'; it has none"):
        ChatTemplate(None, preferred="default")


def test_a_name_that_there_is_not_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(RequestError) as caught:
        ChatTemplate(DEFAULT, named=NAMED).render(MESSAGES, template="x" * 100)
    assert str(caught.value) == (
        f"There is no chat template '{'x' * 64}'; the model has 'default' and 'rag' and 'tool_use'."
    )
    assert (caught.value.code, caught.value.param) == ("invalid_value", "chat_template")
    with pytest.raises(RequestError, match="takes a name, not a text; the model has 'default'") as caught:
        ChatTemplate(DEFAULT).render(MESSAGES, template=DEFAULT)
    assert caught.value.code == "unsupported_parameter"


def test_without_a_default_one_has_to_be_named() -> None:
    template = ChatTemplate(None, named=NAMED)
    with pytest.raises(RequestError, match="no default chat template; chat_template may name 'rag' and 'tool_use'"):
        template.render(MESSAGES)
    assert template.render(MESSAGES, tools=TOOLS) == "tools: Hi"
    assert template.render(MESSAGES, template="rag") == "rag: Hi"


def test_a_broken_one_breaks_no_other() -> None:
    template = ChatTemplate(DEFAULT, named={"broken": "{{", "fine": "fine"})
    assert template.render(MESSAGES) == "default: Hi"
    assert template.render(MESSAGES, template="fine") == "fine"
    with pytest.raises(RequestError, match="The model's chat template is broken"):
        template.render(MESSAGES, template="broken")
