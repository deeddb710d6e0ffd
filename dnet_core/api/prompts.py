"""Messages and tools to the tokens of a prompt, in the way that the loaded model's template wants them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from dnet_core.api.errors import ApiError, at_field
from dnet_core.api.formats import AnswerFormat, answer_format
from dnet_core.api.service import ServedModel
from dnet_core.api.tool_parsers import JsonDict
from dnet_core.api.tool_requests import CallRule
from dnet_core.errors import RequestError

Message = dict[str, object]

_MISTRAL_ID = re.compile(r"[A-Za-z0-9]{9}")

_GENERIC_TOOLS = """\
You may call the functions below. To call one, write a line of this form and nothing after it:
<tool_call>{{"name": "the function's name", "arguments": {{"an argument's name": "its value"}}}}</tool_call>
You will be given the result. When no function is needed, just answer.
The functions:
{tools}"""


class ReasoningState(Enum):
    """How far a prompt has come with the reasoning of the answer."""

    FREE = "free"  # the model may begin it
    OPEN = "open"  # the prompt has begun it
    ENDED = "ended"  # the prompt has ended it: there is none


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the ring continues, and how the answer is to be read."""

    tokens: tuple[int, ...]
    form: AnswerFormat
    tools: tuple[JsonDict, ...]
    reasoning: ReasoningState

    @property
    def in_reasoning(self) -> bool:
        """Whether the answer begins in the middle of the reasoning."""
        return self.reasoning is ReasoningState.OPEN


def chat_prompt(
    model: ServedModel,
    messages: Sequence[Message],
    tools: Sequence[JsonDict],
    variables: Mapping[str, object],
    reasoning_effort: str | None,
    param: str = "messages",
    *,
    bound: CallRule | None = None,
) -> Prompt:
    """Render and encode a chat. Raises ApiError 400 when the template refuses it or it is too long.

    `param` is the field that the messages come from. When calls are to be `bound`, the tools are told to the
    model in a way that a grammar can be written for.
    """
    tokenizer = model.tokenizer
    try:
        template = tokenizer.chat_template(with_tools=bool(tools))
        form = answer_format(tokenizer, with_tools=bool(tools))
        if bound is not None and not form.tools.can_bind(bound):
            form = answer_format(tokenizer, with_tools=bool(tools), generic_calls=True)
        text = render(model, messages, tools, variables, reasoning_effort, form)
        tokens = model.encode(text, add_special_tokens=not template)
    except RequestError as error:
        raise at_field(error, param) from None
    return Prompt(tokens, form, tuple(tools), _reasoning_state(form, text))


def _reasoning_state(form: AnswerFormat, text: str) -> ReasoningState:
    if form.reasoning is None:
        return ReasoningState.ENDED
    if text.rstrip().endswith(form.reasoning.start):
        return ReasoningState.OPEN
    return ReasoningState.ENDED if text.rstrip().endswith(form.reasoning.end) else ReasoningState.FREE


def render(
    model: ServedModel,
    messages: Sequence[Message],
    tools: Sequence[JsonDict],
    variables: Mapping[str, object],
    reasoning_effort: str | None,
    form: AnswerFormat,
) -> str:
    """The text of the prompt, for answers in `form`. Raises RequestErrors."""
    tokenizer = model.tokenizer
    template = tokenizer.chat_template(with_tools=bool(tools))
    told = [_for_template(message, template, form) for message in messages]
    given: dict[str, object] = {**_reasoning_variables(template, reasoning_effort), **variables}
    if not form.knows_tools:
        told = [_without_tool_roles(message) for message in told]
        if tools:
            told = _with_generic_tools(told, tools)
    elif tools:
        given["tools"] = list(tools)
    return tokenizer.apply_chat_template(told, **given)


def _for_template(message: Message, template: str, form: AnswerFormat) -> Message:
    if message["role"] == "developer" and "developer" not in template:
        message = {**message, "role": "system"}
    if form.tools.family == "mistral":
        message = _with_mistral_ids(message)
    return message


def _reasoning_variables(template: str, effort: str | None) -> dict[str, object]:
    """What tells the template how much to reason. Raises ApiError when it has nothing to be told."""
    if effort is None:
        return {}
    switches: dict[str, object] = {
        name: effort != "none"
        for name in ("enable_thinking", "thinking")
        if re.search(rf"\b{name}\b", template)
    }
    if "reasoning_effort" in template and effort != "none":
        return {"reasoning_effort": effort, **switches}
    if switches:
        return switches
    message = "reasoning_effort: how much the loaded model reasons cannot be set"
    raise ApiError(400, message, param="reasoning_effort", code="unsupported_parameter")


def _with_mistral_ids(message: Message) -> Message:
    """Mistral's templates refuse ids of calls that are not nine letters and digits: others get such a one."""
    changed = dict(message)
    if isinstance(given := message.get("tool_call_id"), str):
        changed["tool_call_id"] = _mistral_id(given)
    if isinstance(calls := message.get("tool_calls"), list):
        changed["tool_calls"] = [{**call, "id": _mistral_id(str(call["id"]))} for call in calls]
    return changed


def _mistral_id(given: str) -> str:
    if _MISTRAL_ID.fullmatch(given):
        return given
    return hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()[:9]


def _without_tool_roles(message: Message) -> Message:
    """Calls and results as text, for a template that knows neither."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    written = [f"<tool_call>{json.dumps(call['function'], ensure_ascii=False)}</tool_call>" for call in calls]
    text = "\n".join([str(message["content"]), *written]).strip()
    return {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": text}


def _with_generic_tools(messages: list[Message], tools: Sequence[JsonDict]) -> list[Message]:
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = _GENERIC_TOOLS.format(tools=listed)
    if messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
