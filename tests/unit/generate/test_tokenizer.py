"""The tokenizer and chat templates, against transformers on the same files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import AutoTokenizer

from dnet_core.errors import LoadError, RequestError
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.types.generation import Message, Role
from tests import tiny_tokenizers
from tests.chat_templates import TEMPLATES
from tests.tiny_tokenizers import write_json

CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "You are terse.  "},
    {"role": "user", "content": 'Où est <b>Paris</b> & "Rome"?'},
    {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nFrance; Italy."},
    {"role": "user", "content": "東京?"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather <now> in a city's centre",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
TOOL_CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather in Köln?"},
    {
        "role": "assistant",
        "content": None,
        "reasoning": "I should call the tool.",
        "tool_calls": [
            {
                "id": "abc123def",
                "type": "function",
                "function": {"name": "weather", "arguments": {"city": "Köln"}},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "abc123def", "content": '{"sky": "clear"}'},
]

CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "chat": (CHAT, {}),
    "one turn": (CHAT[1:2], {}),
    "no generation prompt": (CHAT, {"add_generation_prompt": False}),
    "not thinking": (CHAT, {"enable_thinking": False}),
    "date": (CHAT, {"date_string": "01 Jan 2025"}),
    "own bos": (CHAT, {"bos_token": "<BOS>"}),
    "tools": (CHAT, {"tools": TOOLS}),
    "tool calls": (TOOL_CHAT, {"tools": TOOLS}),
}


def _compare(directory: Path, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
    """Check text and ids against transformers; return the text."""
    ours = Tokenizer.load(directory)
    theirs: Any = AutoTokenizer.from_pretrained(directory)
    options = {"add_generation_prompt": True, **variables}
    text = ours.apply_chat_template(messages, **variables)
    assert text == theirs.apply_chat_template(messages, tokenize=False, **options)
    ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    assert ours.encode_chat(messages, **variables) == tuple(ids)
    return text


@pytest.fixture(scope="module")
def sample_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizers.sample(tmp_path_factory.mktemp("sample"))


@pytest.mark.parametrize("kind", ["byte level", "llama like"])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("case", CASES)
def test_renders_and_encodes_as_transformers(tmp_path: Path, kind: str, template: str, case: str) -> None:
    make = tiny_tokenizers.byte_level if kind == "byte level" else tiny_tokenizers.llama_like
    directory = make(tmp_path)
    (directory / "chat_template.jinja").write_text(TEMPLATES[template], encoding="utf-8")
    messages, variables = CASES[case]
    if kind == "byte level":  # it has no BOS of its own
        variables = {"bos_token": "<|im_start|>", **variables}
    assert _compare(directory, messages, variables)


def test_sample_model(sample_dir: Path) -> None:
    text = _compare(sample_dir, [{"role": "user", "content": "What is the capital of France?"}], {})
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    tokenizer = Tokenizer.load(sample_dir)
    messages = (Message(Role.USER, "What is the capital of France?"),)
    assert tokenizer.apply_chat_template(messages) == text
    assert len(tokenizer.encode_chat(messages)) == 37
    assert tokenizer.eos_token_ids == (2,)
    assert tokenizer.decode(tokenizer.encode_chat(messages)).startswith("system\nYou are")


def test_template_refusal_is_a_request_error(tmp_path: Path) -> None:
    directory = tiny_tokenizers.llama_like(tmp_path)
    (directory / "chat_template.jinja").write_text(TEMPLATES["mistral"], encoding="utf-8")
    tokenizer = Tokenizer.load(directory)
    with pytest.raises(RequestError, match="roles must alternate"):
        tokenizer.apply_chat_template([CHAT[1], CHAT[1]])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content + 1 }}", "concatenate str"),
        ("{{ 1 // 0 }}", "division"),
        ("{{ missing.attribute }}", "undefined"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "namespace cannot hold"),
        ("{{ range(1000000000) | list }}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_broken_or_hostile_templates_are_request_errors(tmp_path: Path, template: str, message: str) -> None:
    directory = tiny_tokenizers.byte_level(tmp_path)
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(RequestError, match=message):
        Tokenizer.load(directory).apply_chat_template(CHAT)


def test_requests_reach_only_variables_that_are_theirs(tmp_path: Path) -> None:
    directory = tiny_tokenizers.byte_level(tmp_path)
    (directory / "chat_template.jinja").write_text("{{ self is defined }}{{ path }}", encoding="utf-8")
    tokenizer = Tokenizer.load(directory)
    with pytest.raises(RequestError, match="'messages' cannot be set"):
        tokenizer.apply_chat_template(CHAT, messages=[])
    with pytest.raises(RequestError, match="PosixPath"):
        tokenizer.apply_chat_template(CHAT, path=tmp_path)
    with pytest.raises(RequestError, match="at least one message"):
        tokenizer.apply_chat_template([])


def test_without_a_template_turns_are_lines(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizers.llama_like(tmp_path))
    messages = (Message(Role.SYSTEM, "Be kind."), Message(Role.USER, "Hi"))
    text = "System: Be kind.\n\nUser: Hi\n\nAssistant:"
    assert not tokenizer.has_chat_template
    assert tokenizer.apply_chat_template(messages) == text
    assert tokenizer.encode_chat(messages) == tokenizer.encode(text, add_special_tokens=True)
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]}]
    assert tokenizer.apply_chat_template(parts, add_generation_prompt=False) == "User: Hi you"


def test_bos_comes_once(tmp_path: Path) -> None:
    directory = tiny_tokenizers.llama_like(tmp_path)
    (directory / "chat_template.jinja").write_text(
        "{{ bos_token }}{{ messages[0].content }}", encoding="utf-8"
    )
    tokenizer = Tokenizer.load(directory)
    bos = tokenizer.bos_token_id
    assert tokenizer.encode("fox", add_special_tokens=True)[0] == bos
    assert bos not in tokenizer.encode("fox", add_special_tokens=False)
    for ids in (
        tokenizer.encode("<s>fox", add_special_tokens=True),
        tokenizer.encode_chat([Message(Role.USER, "fox")]),
    ):
        assert ids.count(bos) == 1
        assert ids[0] == bos


def test_half_a_surrogate_pair_is_a_request_error(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizers.byte_level(tmp_path))
    with pytest.raises(RequestError, match="surrogate"):
        tokenizer.encode("\ud83d", add_special_tokens=False)


@pytest.mark.parametrize(
    ("config", "generation_config", "expected"),
    [
        (None, None, (2,)),
        ({"eos_token_id": 0}, None, (0, 2)),
        ({"eos_token_id": [5, 7]}, {"temperature": 1.0}, (2, 5, 7)),
        ({"eos_token_id": 5}, {"eos_token_id": [9, 2]}, (2, 9)),
        ({"text_config": {"eos_token_id": [6]}}, {"eos_token_id": None}, (2, 6)),
    ],
)
def test_end_of_sequence_ids(
    tmp_path: Path, config: object, generation_config: object, expected: tuple[int, ...]
) -> None:
    directory = tiny_tokenizers.byte_level(tmp_path)
    for name, value in (("config.json", config), ("generation_config.json", generation_config)):
        if value is not None:
            write_json(directory / name, value)
    tokenizer = Tokenizer.load(directory)
    assert tokenizer.eos_token_ids == expected
    assert set(expected) < tokenizer.hidden_token_ids


def test_templates_are_found_where_models_keep_them(tmp_path: Path) -> None:
    directory = tiny_tokenizers.byte_level(tmp_path)
    say = "{{ '%s' }}"

    def rendered(**variables: object) -> str:
        return Tokenizer.load(directory).apply_chat_template(CHAT, **variables)

    write_json(directory / "chat_template.json", {"chat_template": say % "old file"})
    assert rendered() == "old file"
    named = [
        {"name": "tool_use", "template": say % "tools"},
        {"name": "default", "template": say % "default"},
    ]
    write_json(directory / "tokenizer_config.json", {"chat_template": named})
    assert (rendered(), rendered(tools=TOOLS)) == ("default", "tools")
    write_json(directory / "tokenizer_config.json", {"chat_template": say % "config"})
    assert rendered(tools=TOOLS) == "config"
    (directory / "chat_template.jinja").write_text(say % "jinja", encoding="utf-8")
    assert rendered() == "jinja"
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text(say % "more", encoding="utf-8")
    assert (rendered(), rendered(tools=TOOLS)) == ("jinja", "more")


def test_no_default_among_named_templates(tmp_path: Path) -> None:
    directory = tiny_tokenizers.byte_level(tmp_path)
    write_json(directory / "tokenizer_config.json", {"chat_template": [{"name": "rag", "template": "x"}]})
    with pytest.raises(RequestError, match="rag"):
        Tokenizer.load(directory).apply_chat_template(CHAT)


def test_special_tokens_that_tokenizer_json_does_not_know(tmp_path: Path) -> None:
    directory = tiny_tokenizers.byte_level(tmp_path)
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|end|>",
            "added_tokens_decoder": {
                "401": {"content": "<|end|>", "special": True},
                "402": {"content": "<call>", "special": False},
            },
        },
    )
    tokenizer = Tokenizer.load(directory)
    theirs: Any = AutoTokenizer.from_pretrained(directory)
    text = "<call>fox<|end|>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert list(ids) == theirs.encode(text)
    assert tokenizer.eos_token_ids == (ids[-1],)
    assert tokenizer.decode(ids) == "<call>fox"


def test_config_may_call_a_known_token_special(tmp_path: Path) -> None:
    directory = tiny_tokenizers.byte_level(tmp_path)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {"400": {"content": "<think>", "special": True, "rstrip": True}},
    }
    write_json(directory / "tokenizer_config.json", config)
    tokenizer = Tokenizer.load(directory)
    theirs: Any = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer.encode("fox <think>  fox", add_special_tokens=False)
    assert list(ids) == theirs.encode("fox <think>  fox")
    assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == "fox fox"


def test_truncation_and_padding_of_training_are_off(tmp_path: Path) -> None:
    directory = tiny_tokenizers.byte_level(tmp_path)
    plain = Tokenizer.load(directory).encode("fox " * 50, add_special_tokens=True)
    backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=512)
    backend.save(str(directory / "tokenizer.json"))
    assert Tokenizer.load(directory).encode("fox " * 50, add_special_tokens=True) == plain


def test_sentencepiece_model_is_converted(tmp_path: Path) -> None:
    processor = tiny_tokenizers.sentencepiece_model(tmp_path)
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    tokenizer = Tokenizer.load(tmp_path)
    text = "The lazy fox, 東京 🙂"
    assert list(tokenizer.encode(text, add_special_tokens=False)) == processor.encode(text)
    assert tokenizer.eos_token_ids == (processor.eos_id(),)
    assert tokenizer.bos_token_id == processor.bos_id()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no tokenizer.json"),
        ({"tokenizer.json": "{"}, "is not a tokenizer"),
        ({"tokenizer.json": '{"model": {}}'}, "is not a tokenizer"),
        ({"tokenizer.model": "not a model"}, "add a tokenizer.json"),
        ({"tokenizer_config.json": "{"}, "tokenizer_config.json cannot be read"),
        ({"special_tokens_map.json": "[]"}, "does not hold a JSON object"),
    ],
)
def test_bad_files_are_load_errors(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(LoadError, match=message):
        Tokenizer.load(tmp_path)


def test_eos_that_is_no_id_is_a_load_error(tmp_path: Path) -> None:
    directory = tiny_tokenizers.byte_level(tmp_path)
    write_json(directory / "config.json", {"eos_token_id": "</s>"})
    with pytest.raises(LoadError, match="eos_token_id"):
        Tokenizer.load(directory)


def test_the_head_imports_neither_mlx_nor_transformers() -> None:
    code = (
        "import sys, dnet_core.generate.detokenize, dnet_core.generate.stop\n"
        "assert 'jinja2' not in sys.modules, 'only a chat needs it'\n"
        "import dnet_core.generate.chat_template\n"
        "heavy = {'mlx', 'mlx_lm', 'transformers', 'numpy', 'torch'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
