"""From what a request wants to the grammar of its answer, in the model's own format.

    [reasoning] answer          response_format and its like
    [reasoning] calls           a call is required, or one function
    [reasoning] text | calls    strict functions, which need not be called

Reasoning is free text up to its end marker: nothing else may end it, so that an answer follows in any case.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache

from dnet_core.api.errors import ApiError
from dnet_core.api.formats import RESPONSE_TOKENS, AnswerFormat
from dnet_core.api.prompts import Prompt, ReasoningState
from dnet_core.api.structured import Wanted
from dnet_core.api.tool_requests import CallRule
from dnet_core.errors import GrammarError
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.grammar import build
from dnet_core.grammar.build import GrammarWriter, Part
from dnet_core.grammar.check import GrammarChecker

_SPACE = r"/[ \t\r\n]{0,8}/"
_NO_CALL = r"/[^{\s](.|\n)*/"
"""Text that a parser does not take for the call of a family whose calls are bare objects."""
_FINAL = "<|channel|>final<|message|>"
_ANALYSIS = "<|channel|>analysis<|message|>"
_NEXT_MESSAGE = "<|end|><|start|>assistant"


async def chat_grammar(
    tokenizer: Tokenizer, prompt: Prompt, wanted: Wanted | None, calls: CallRule
) -> str | None:
    """What an answer to `prompt` is bound to; None: nothing. Raises ApiError 400 when it is no grammar.

    Compiling may take a second: it is done beside the event loop.
    """
    if wanted is None and not calls.binds:
        return None
    writer = GrammarWriter(tokenizer.control_tokens)
    text = writer.grammar(_answer(writer, prompt, wanted, calls))
    await asyncio.to_thread(_check, tokenizer, text, wanted, calls)
    return text


async def text_grammar(tokenizer: Tokenizer, wanted: Wanted | None) -> str | None:
    """What the continuation of a plain text is bound to. Raises ApiError 400."""
    if wanted is None:
        return None
    text = _alone(tokenizer, wanted.part)
    await asyncio.to_thread(_check, tokenizer, text, wanted, None)
    return text


def _check(tokenizer: Tokenizer, text: str, wanted: Wanted | None, calls: CallRule | None) -> None:
    """Raise ApiError unless `text` is a grammar; the field at fault is looked for only then."""
    checker = _checker(tokenizer)
    try:
        checker.check(text)
    except GrammarError as error:
        told = error
    else:
        return
    fields = [(wanted.param, wanted.part)] if wanted else []
    fields += [
        (tool.param, build.json_schema(tool.schema, strict=tool.strict))
        for tool in (calls.tools if calls else ())
    ]
    param = fields[0][0]
    for field, part in fields:
        try:
            checker.check(_alone(tokenizer, part))
        except GrammarError as error:
            told, param = error, field
            break
    raise ApiError(400, f"{param}: {told}", param=param, code="invalid_value")


def _alone(tokenizer: Tokenizer, part: Part) -> str:
    writer = GrammarWriter(tokenizer.control_tokens)
    return writer.grammar(writer.part(part))


@lru_cache(maxsize=2)  # the model that is loaded, and the one before
def _checker(tokenizer: Tokenizer) -> GrammarChecker:
    return GrammarChecker(tokenizer.vocab_size, tokenizer.control_tokens, tokenizer.eos_token_ids)


def _answer(writer: GrammarWriter, prompt: Prompt, wanted: Wanted | None, calls: CallRule) -> str:
    form = prompt.form
    if form.is_harmony:
        return _harmony(writer, form, wanted, calls)
    body = _body(writer, form, wanted, calls)
    if form.reasoning is None or prompt.reasoning is ReasoningState.ENDED:
        return body
    reasoning = f"{writer.text_until(form.reasoning.end)} {_SPACE}"
    if prompt.reasoning is ReasoningState.OPEN:
        return f"{reasoning} ({body})"
    return f"({writer.marker(form.reasoning.start)} {reasoning})? ({body})"


def _body(writer: GrammarWriter, form: AnswerFormat, wanted: Wanted | None, calls: CallRule) -> str:
    tools = form.tools
    if not calls.tools:
        assert wanted is not None, "else the answer is free"
        return _plain(writer, form, writer.part(wanted.part))
    assert tools.write is not None, "the prompt asks for calls in a format that can be written"
    start = "" if tools.bare else tools.start
    bound = tools.write(writer, calls, writer.marker(start), start, tools.end)
    if calls.must_call:
        return bound
    if wanted is not None:
        return f"{_plain(writer, form, writer.part(wanted.part))} | {bound}"
    if tools.bare:
        return f"{_NO_CALL} | {bound}"
    if writer.is_control(tools.start):
        return f"{writer.any_text} ({bound})?"
    # Any text, until the marker has been written: then a call follows.
    begin = writer.rule(f"{writer.any_text} {build.literal(tools.start)}", "[lazy]")
    return f"{writer.any_text} | {tools.write(writer, calls, begin, tools.start, tools.end)}"


def _plain(writer: GrammarWriter, form: AnswerFormat, answer: str) -> str:
    """An answer in the markers that the family sets around it."""
    if RESPONSE_TOKENS[0] not in form.dropped:
        return answer
    return f"{writer.marker(RESPONSE_TOKENS[0])} {answer} {writer.marker(RESPONSE_TOKENS[1])}"


def _harmony(writer: GrammarWriter, form: AnswerFormat, wanted: Wanted | None, calls: CallRule) -> str:
    analysis = f"{writer.marker(_ANALYSIS)} {writer.any_text} {writer.marker(_NEXT_MESSAGE)}"
    bodies: list[str] = []
    if calls.tools:
        assert form.tools.write is not None, "gpt-oss writes its calls as messages"
        bodies.append(form.tools.write(writer, calls, "", "", ""))
    if not (calls.tools and calls.must_call):
        text = writer.part(wanted.part) if wanted else writer.any_text
        bodies.append(f"{writer.marker(_FINAL)} {text}")
    return f"({analysis})* ({' | '.join(bodies)})"
