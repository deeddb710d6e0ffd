"""How a model writes reasoning and tool calls, told from its chat template and its vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from dnet_core.api.call_grammars import (
    CallGrammar,
    command_a,
    deepseek_v3,
    deepseek_v3_1,
    harmony,
    json_blocks,
    json_list,
    kimi_k2,
    llama_3,
    mistral_headers,
)
from dnet_core.api.flat_calls import (
    GLM_4,
    MINIMAX_M2,
    QWEN_3_CODER,
    Tags,
    fits_python,
    fits_tags,
    pythonic,
    tagged,
)
from dnet_core.api.tool_parsers import (
    CallParser,
    deepseek_calls,
    exact_parser,
    json_calls,
    llama_calls,
    mlx_lm_markers,
    mlx_lm_parser,
)
from dnet_core.api.tool_requests import BoundTool, CallRule
from dnet_core.generate.thoughts import ReasoningFormat, marker_tokens, reasoning_format
from dnet_core.generate.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """Tool calls stand between `start` and `end`, where `parse` reads them.

    `bare`: an answer that begins with `{` is a call, too. An empty `end`: calls go on to the end of the
    answer. `streams`: a call is an object with "name" and then "arguments", sent on as it is written.
    `inner` are further special tokens that the calls are written with. `write` is the grammar of calls, of
    the functions that it `fits`: an answer that must call others is asked for in the generic format.
    """

    family: str
    start: str
    end: str
    parse: CallParser
    streams: bool = False
    inner: tuple[str, ...] = ()
    write: CallGrammar | None = None
    fits: Callable[[BoundTool], bool] = lambda tool: True
    bare: bool = False

    def can_bind(self, calls: CallRule) -> bool:
        """Whether a grammar of `calls` can be written in this format."""
        return self.write is not None and all(map(self.fits, calls.tools))


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """All that is needed to read a model's answer. `shown` are the special tokens to be spelled out."""

    reasoning: ReasoningFormat | None
    tools: ToolFormat
    is_harmony: bool
    knows_tools: bool  # the template tells the model about tools
    dropped: tuple[str, ...]  # markers around the plain answer
    shown: frozenset[int]


HARMONY_TOKENS = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>")
RESPONSE_TOKENS = ("<|START_RESPONSE|>", "<|END_RESPONSE|>")

GENERIC = ToolFormat("generic", "<tool_call>", "</tool_call>", json_calls, streams=True, write=json_blocks)
HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>", json_calls, streams=True, write=json_blocks)
LLAMA_3 = ToolFormat("llama3", "<|python_tag|>", "", llama_calls, streams=True, write=llama_3, bare=True)
HARMONY = ToolFormat("harmony", "", "", json_calls, streams=True, inner=HARMONY_TOKENS, write=harmony)
DEEPSEEK_V3_1 = ToolFormat(
    "deepseek-v3.1",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    deepseek_calls,
    inner=("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    write=deepseek_v3_1,
)
DEEPSEEK = replace(DEEPSEEK_V3_1, family="deepseek", write=deepseek_v3)
GRANITE_3 = ToolFormat("granite3", "<|tool_call|>", "", json_calls, write=json_list())
PHI_4 = ToolFormat("phi4", "<|tool_call|>", "<|/tool_call|>", json_calls, write=json_list())
COMMAND_A = ToolFormat("command-a", "<|START_ACTION|>", "<|END_ACTION|>", json_calls, write=command_a)
COMMAND_R = ToolFormat(
    "command-r",
    "Action: ```json",
    "```",
    json_calls,
    write=json_list("\n[", "]\n", name="tool_name", arguments="parameters"),
)
NEMOTRON = ToolFormat("nemotron", "<TOOLCALL>", "</TOOLCALL>", json_calls, write=json_list())


def _mlx_lm(module: str, *inner: str, write: CallGrammar | None = None) -> ToolFormat:
    start, end = mlx_lm_markers(module)
    return ToolFormat(module, start, end, mlx_lm_parser(module), inner=inner, write=write)


def _mlx_lm_tags(module: str, tags: Tags, *inner: str) -> ToolFormat:
    found = _mlx_lm(module, *inner, write=tagged(tags))
    return replace(found, parse=exact_parser(module), fits=fits_tags)


_TAG_TOKENS = ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
QWEN3_CODER = _mlx_lm_tags("qwen3_coder", QWEN_3_CODER)
GLM47 = _mlx_lm_tags("glm47", GLM_4, *_TAG_TOKENS)
MINIMAX = _mlx_lm_tags("minimax_m2", MINIMAX_M2)
PYTHONIC = replace(_mlx_lm("pythonic", write=pythonic), fits=fits_python)


# First match wins. Each row: texts that the template holds (all of them), and the format that they mean. The
# rows of mlx-lm's parsers are those of its own detection.
_BY_TEMPLATE: tuple[tuple[tuple[str, ...], ToolFormat], ...] = (
    (("<minimax:tool_call>",), MINIMAX),
    (("<|tool_call>", "<tool_call|>"), _mlx_lm("gemma4", '<|"|>')),
    (("<start_function_call>",), _mlx_lm("function_gemma", "<escape>")),
    (("<longcat_tool_call>",), _mlx_lm("longcat")),
    (("<arg_key>",), GLM47),
    (("<|tool_list_start|>",), PYTHONIC),
    (("<|tool_call_start|>",), PYTHONIC),
    (("<tool_call>\\n<function=",), QWEN3_CODER),
    (("<tool_call>\n<function=",), QWEN3_CODER),
    (
        ("<|tool_calls_section_begin|>",),
        _mlx_lm(
            "kimi_k2",
            "<|tool_call_begin|>",
            "<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
            write=kimi_k2,
        ),
    ),
    (('<function name="', '<param name="'), _mlx_lm("minicpm5")),
    (("<|channel|>", "<|message|>"), HARMONY),
    (("<｜tool▁calls▁begin｜>", "```json"), DEEPSEEK),
    (("<｜tool▁calls▁begin｜>",), DEEPSEEK_V3_1),
    (("<|START_ACTION|>",), COMMAND_A),
    (("Action:", "```json"), COMMAND_R),
    (("[TOOL_CALLS]", "[ARGS]"), _mlx_lm("mistral", "[ARGS]", "[CALL_ID]", write=mistral_headers)),
    (("[TOOL_CALLS]",), _mlx_lm("mistral", "[ARGS]", "[CALL_ID]", write=json_list())),
    (("<atem:function_calls>",), _mlx_lm("muse_spark")),
    (("<TOOLCALL>",), NEMOTRON),
    (("<tool_call>",), HERMES),
    (("<|python_tag|>",), LLAMA_3),
    (("<|start_header_id|>", '"parameters": '), LLAMA_3),
    (("<|/tool_call|>",), PHI_4),
    (("<|tool_call|>",), GRANITE_3),
)
_BY_TOKENS: tuple[tuple[tuple[str, ...], ToolFormat], ...] = (
    (
        ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
        _mlx_lm("kimi_k3", "<|open|>", "<|close|>", "<|sep|>"),
    ),
    (("<|tool_call_start|>", "<|tool_call_end|>"), PYTHONIC),
)


@lru_cache(maxsize=8)  # with and without tools for the model that is loaded, and the one before
def answer_format(tokenizer: Tokenizer, *, with_tools: bool, generic_calls: bool = False) -> AnswerFormat:
    """How the model of `tokenizer` answers a chat with or without tools.

    With `generic_calls` it is asked to call in the format that belongs to no family.
    """
    template = tokenizer.chat_template(with_tools=with_tools)
    tools = _tool_format(tokenizer, template)
    knows_tools = "tools" in template
    if generic_calls:
        tools, knows_tools = GENERIC, False
    reasoning = reasoning_format(tokenizer, template)
    dropped = RESPONSE_TOKENS if RESPONSE_TOKENS[0] in template else ()
    texts = set(dropped)
    if with_tools or tools is HARMONY:
        texts |= {tools.start, tools.end, *tools.inner}
    if reasoning is not None:
        texts |= {*marker_tokens(reasoning.start), *marker_tokens(reasoning.end)}
    ids = (tokenizer.token_id(text) for text in texts)
    return AnswerFormat(
        reasoning=reasoning,
        tools=tools,
        is_harmony=tools is HARMONY,
        knows_tools=knows_tools,
        dropped=dropped,
        shown=frozenset(i for i in ids if i is not None),
    )


def _tool_format(tokenizer: Tokenizer, template: str) -> ToolFormat:
    for texts, found in _BY_TEMPLATE:
        if all(text in template for text in texts):
            return found
    for texts, found in _BY_TOKENS:
        if all(tokenizer.token_id(text) is not None for text in texts):
            return found
    return GENERIC
