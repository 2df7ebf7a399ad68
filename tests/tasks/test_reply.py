"""Tools and thought of a task: what the prompt says of them, what binds the reply, what tells its parts apart."""

from __future__ import annotations

from typing import Any

import pytest

from app.errors import RequestError
from app.serving.generator import Generator
from app.tasks.generate import GenerateTask, SamplingOptions
from app.tasks.prompts import Conversation, EncodedPrompt
from app.tasks.reply import ReplyOptions, Tool, ToolChoice
from app.text.chat_template import ChatTemplate
from app.text.grammars.grammar import Grammar
from app.text.parsers.formats import FORMATS, ReplyFormat
from app.text.parsers.reply import Content, Reasoning
from app.text.parsers.thoughts import THOUGHTS
from tests.byte_tokenizer import CHATML_TEMPLATE
from tests.serving.rig import running

THINK = next(each for each in THOUGHTS if each.name == "think")
ADD = Tool(name="add", description="Adds.", parameters={"type": "object", "properties": {"a": {"type": "integer"}}})
FORM = Grammar('start: "yes" | "no"')
SAYS_TOOLS = CHATML_TEMPLATE + "{% if tools %}{{ tools[0].function.name }}<tool_call>{% endif %}"
TOLD = CHATML_TEMPLATE + "{% if not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"


async def encoded(
    reply: ReplyOptions | None,
    *,
    template: str = CHATML_TEMPLATE,
    thinks: bool = False,
    form: Grammar | None = None,
    **conversation: Any,
) -> tuple[EncodedPrompt, Generator]:
    messages = conversation.pop("messages", [{"role": "user", "content": "Hi"}])
    async with running(max_model_len=4096, num_blocks=512) as rig:
        generator = rig.generator
        generator.chat_template = ChatTemplate(template)
        generator.reply_format = ReplyFormat(
            next(each for each in FORMATS if each.name == ("hermes" if "tools" in template else "generic")),
            THINK if thinks else None,
        )
        prompt = Conversation(messages=messages, **conversation)
        task = GenerateTask(prompts=[prompt], sampling=SamplingOptions(), reply=reply, form=form)
        (first,) = await task.encode(generator, None)
        return first, generator


def text_of(prompt: EncodedPrompt, generator: Generator) -> str:
    return generator.tokenizer.decode(prompt.token_ids, skip_special_tokens=False)


async def test_a_template_with_a_place_for_tools_gets_them() -> None:
    prompt, generator = await encoded(ReplyOptions(tools=(ADD,)), template=SAYS_TOOLS)
    assert text_of(prompt, generator).endswith("add<tool_call>")
    assert "<tool_call>" in prompt.constraint
    assert prompt.new_parser is not None


async def test_a_template_without_one_has_them_told() -> None:
    prompt, generator = await encoded(ReplyOptions(tools=(ADD,)))
    text = text_of(prompt, generator)
    assert text.startswith("<|im_start|>system\n")
    assert '"description": "Adds."' in text


async def test_tools_that_may_not_be_called_are_not_told() -> None:
    plain, _ = await encoded(None)
    prompt, _ = await encoded(ReplyOptions(tools=(ADD,), choice=ToolChoice(mode="none")))
    assert prompt == plain
    assert prompt.constraint == ""
    assert prompt.new_parser is None


async def test_a_form_alone_stays_as_it_is() -> None:
    prompt, _ = await encoded(ReplyOptions(), form=FORM)
    assert prompt.constraint == FORM.source()
    assert prompt.new_parser is None


@pytest.mark.parametrize(
    ("thinks", "ending", "parts"),
    [
        (True, "<think>\n", [Reasoning("yes")]),
        (False, "<think>\n\n</think>\n\n", [Content("yes")]),
    ],
)
async def test_a_prompt_that_opens_or_closes_the_thought(thinks: bool, ending: str, parts: list[object]) -> None:
    prompt, generator = await encoded(ReplyOptions(thinks=thinks), template=TOLD, thinks=True, form=FORM)
    assert text_of(prompt, generator).endswith(ending)
    assert ("</think>" in prompt.constraint) == thinks
    assert prompt.new_parser is not None
    parser = prompt.new_parser()
    assert [*parser.push("yes"), *parser.flush()] == parts


async def test_what_a_client_tells_the_template_goes_before() -> None:
    options = ReplyOptions(thinks=False)
    prompt, generator = await encoded(options, template=TOLD, thinks=True, template_kwargs={"enable_thinking": True})
    assert text_of(prompt, generator).endswith("<think>\n")
    assert "</think>" in prompt.constraint  # closed at once


async def test_a_thought_that_is_to_be_continued() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>Well"}]
    prompt, _ = await encoded(
        ReplyOptions(), thinks=True, messages=messages, add_generation_prompt=False, continue_final_message=True
    )
    assert prompt.new_parser is not None
    assert prompt.new_parser().in_reasoning


def tool(name: str, **fields: Any) -> Tool:
    return Tool(name=name, **fields)


@pytest.mark.parametrize(
    "options",
    [
        ReplyOptions(tools=(tool(""),)),
        ReplyOptions(tools=(tool("é"),)),
        ReplyOptions(tools=(tool("f"), tool("f"))),
        ReplyOptions(tools=(tool("f"),), choice=ToolChoice(names=frozenset(["g"]))),
        ReplyOptions(choice=ToolChoice(mode="required")),
        ReplyOptions(tools=(tool("f", parameters={"type": "array"}),)),
    ],
)
def test_options_that_are_refused(options: ReplyOptions) -> None:
    with pytest.raises(RequestError) as error:
        options.check()
    assert error.value.status == 400


async def test_a_schema_that_cannot_be_honoured_names_the_tool() -> None:
    odd = tool("f", parameters={"type": "object", "properties": {"a": {"type": "no such type"}}})
    with pytest.raises(RequestError, match=r"f.*a"):
        await encoded(ReplyOptions(tools=(odd,)))


def test_arguments_that_are_not_named_are_none() -> None:
    schema = tool("f", parameters={"properties": {"a": {}}}).schema()
    assert schema == {"type": "object", "properties": {"a": {}}, "additionalProperties": False}
    assert tool("f").schema() == {"type": "object"}
