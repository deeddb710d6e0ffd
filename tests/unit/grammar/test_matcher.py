"""Masks and forced tokens: what llguidance says of the same tokens, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from dnet_core.errors import GrammarError
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.grammar import build
from dnet_core.grammar.build import GrammarWriter, JsonDict
from dnet_core.grammar.check import GrammarChecker
from dnet_core.grammar.limits import MAX_FORCED_TOKENS
from dnet_core.grammar.matcher import GrammarTokenizer
from dnet_core.store.tokenizer_files import is_control
from tests import tiny_tokenizers

ADDED = {
    "<think>": False,
    "[THINK]": False,
    "      ": False,
    "<a b>": False,
    "[INST]": True,
    "foo_bar": False,
}
SCHEMA: JsonDict = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "n": {"type": "integer"}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


class Vocabulary:
    def __init__(self, directory: Path) -> None:
        self.head = Tokenizer.load(directory)
        self.tail = GrammarTokenizer(directory)
        self.backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.eos = list(self.head.eos_token_ids)
        self.library = LLTokenizer(self.backend.to_str(), eos_token=self.eos)
        self.checker = GrammarChecker(self.head.vocab_size, self.head.control_tokens, self.head.eos_token_ids)

    def grammar(self, part: JsonDict) -> str:
        writer = GrammarWriter(self.head.control_tokens)
        return writer.grammar(writer.part(part))

    def library_mask(self, matcher: LLMatcher) -> np.ndarray:
        mask = allocate_token_bitmask(1, self.library.vocab_size)
        fill_next_token_bitmask(matcher, mask)
        bits = (mask[0][:, None] >> np.arange(32)) & 1
        return bits.reshape(-1)[: self.library.vocab_size].astype(bool)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    directory = tiny_tokenizers.byte_level(tmp_path_factory.mktemp("plain"))
    path = str(directory / "tokenizer.json")
    backend = tokenizers.Tokenizer.from_file(path)
    for text, special in ADDED.items():
        backend.add_tokens([tokenizers.AddedToken(text, special=special, normalized=False)])
    backend.save(path)
    return Vocabulary(directory)


@pytest.fixture(scope="module")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return Vocabulary(tiny_tokenizers.llama_like(tmp_path_factory.mktemp("spaced")))


def test_control_tokens_are_those_that_llguidance_names(plain: Vocabulary, spaced: Vocabulary) -> None:
    for vocabulary in (plain, spaced):
        library = {i for i in range(vocabulary.head.vocab_size) if vocabulary.library.is_special_token(i)}
        added = vocabulary.backend.get_added_tokens_decoder()
        assert {i for i, token in added.items() if is_control(token)} == set(vocabulary.head.control_tokens)
        # It counts the end tokens in, whatever they look like, and the byte FF, which no text has.
        others = {*vocabulary.eos, vocabulary.head.token_id("ÿ"), vocabulary.head.token_id("<0xFF>")}
        assert library - others == set(vocabulary.head.control_tokens) - others


@pytest.mark.parametrize("kind", ["plain", "spaced"])
@pytest.mark.parametrize("padding", [0, 1, 100])
def test_the_mask_is_llguidances(kind: str, padding: int, request: pytest.FixtureRequest) -> None:
    """Padded to the model's own table, at every token of an answer."""
    vocabulary: Vocabulary = request.getfixturevalue(kind)
    grammar = vocabulary.grammar(build.json_schema(SCHEMA))
    matcher, own = vocabulary.tail.matcher(grammar), LLMatcher(vocabulary.library, grammar)
    while not matcher.is_done:
        known = vocabulary.library.vocab_size
        mask = matcher.allowed(known + padding)
        assert mask.shape == (known + padding,)
        assert (mask[:known] == vocabulary.library_mask(own)).all()
        assert not mask[known:].any()
        token = int(np.flatnonzero(mask)[-1])
        tokens = (token, *matcher.take(token))
        for forced in tokens[1:]:
            own.consume_token(token)
            assert np.flatnonzero(vocabulary.library_mask(own)).tolist() == [forced], (
                "nothing else may follow"
            )
            token = forced
        own.consume_token(token)
    assert own.is_stopped()


def test_the_mask_is_cut_to_the_models_table(plain: Vocabulary) -> None:
    grammar = plain.grammar(build.regex("[a-z]+"))
    mask = plain.tail.matcher(grammar).allowed(300)
    assert (mask == plain.library_mask(LLMatcher(plain.library, grammar))[:300]).all()


def test_an_answer_that_may_end_may_also_go_on(plain: Vocabulary) -> None:
    matcher = plain.tail.matcher(plain.grammar(build.regex("a+")))
    size = plain.head.vocab_size
    assert not matcher.allowed(size)[plain.eos].any()
    matcher.take(plain.head.encode("a", add_special_tokens=False)[0])
    assert matcher.allowed(size)[plain.eos].all()
    assert not matcher.is_done


def test_a_long_text_is_forced_in_pieces(plain: Vocabulary) -> None:
    text = "the lazy dog runs " * 40
    matcher = plain.tail.matcher(plain.grammar(build.choice([text])))
    tokens: list[int] = []
    num_steps = 0
    while not matcher.is_done:
        (first,) = np.flatnonzero(matcher.allowed(plain.head.vocab_size)).tolist()
        forced = matcher.take(first)
        assert len(forced) <= MAX_FORCED_TOKENS
        tokens += [first, *forced]
        num_steps += 1
    assert plain.head.decode(tokens) == text
    assert num_steps == -(-len(tokens) // (MAX_FORCED_TOKENS + 1))


def test_a_text_that_spells_a_control_token_is_said_letter_by_letter(plain: Vocabulary) -> None:
    matcher = plain.tail.matcher(plain.grammar(build.json_schema({"const": "a <think> b"})))
    tokens: list[int] = []
    while not matcher.is_done:
        mask = matcher.allowed(plain.head.vocab_size)
        tokens.append(int(np.flatnonzero(mask)[-1]))
        assert matcher.take(tokens[-1]) == ()
    assert plain.head.decode(tokens) == '"a <think> b"'
    assert not set(tokens) & set(plain.head.control_tokens)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"\x3cthink\x3ea", "<think>a"),
        (r"ab\x5bINST\x5dcd", "ab[INST]cd"),
        (r"[x]the lazy dog[<]t(h)ink>", "xthe lazy dog<think>"),
        (r"the lazy (d)og\u{3c}think>" + "the lazy dog " * 40, "the lazy dog<think>" + "the lazy dog " * 40),
    ],
)
def test_escapes_that_spell_a_control_token(pattern: str, text: str, plain: Vocabulary) -> None:
    grammar = plain.grammar(build.regex(pattern))
    plain.checker.check(grammar)
    for begun in range(len(text)):
        tokens = plain.head.encode(text[:begun], add_special_tokens=False)
        if set(tokens) & set(plain.head.control_tokens):
            break
        matcher, told = plain.tail.matcher(grammar, tokens), list(tokens)
        while not matcher.is_done:
            (token,) = np.flatnonzero(matcher.allowed(plain.head.vocab_size))[:1].tolist()
            told += [token, *matcher.take(token)]
        assert plain.head.decode(told) == text
        assert not set(told) & set(plain.head.control_tokens)


@pytest.mark.parametrize("decoder", ["metaspace", "none"])
def test_a_tokenizer_that_llguidance_does_not_know(decoder: str, tmp_path: Path) -> None:
    tiny_tokenizers.neighbours(tmp_path, decoder)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    with pytest.raises(GrammarError, match="decoder"):
        GrammarTokenizer(tmp_path)


def test_a_model_without_an_end(tmp_path: Path) -> None:
    tiny_tokenizers.neighbours(tmp_path, "bytes and metaspace")
    with pytest.raises(GrammarError, match="end-of-sequence"):
        GrammarTokenizer(tmp_path)
    with pytest.raises(GrammarError, match="end-of-sequence"):
        GrammarChecker(300, {}, ()).check(build.GrammarWriter({}).grammar('"a"'))


BOUNDS = {
    "bytes": ("start: " + " | ".join(f'"{i:08}"' for i in range(30_000)), "bytes"),
    "rules": ("start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(5_000)), "rules"),
    "repeats": ("start: /a{60000}/", "repeats"),
    "repeats of a rule": ('start: x{1,99999999999}\nx: "a"', "repeats"),
    "Lark's own repeats": ('start: x~2..70000\nx: "a"', "repeats"),
    "a schema inside": ('start: %json {"maxLength": 70000}', "repeats"),
    "nesting": ("start: " + "(" * 5_000 + '"a"' + ")" * 5_000, "nested"),
}


@pytest.mark.parametrize("what", BOUNDS)
def test_what_is_too_large_is_refused_on_both_ends(what: str, plain: Vocabulary) -> None:
    text, words = BOUNDS[what]
    grammar = plain.grammar(build.lark(text))
    for refuse in (plain.checker.check, plain.tail.matcher):
        with pytest.raises(GrammarError, match=words):
            refuse(grammar)


@pytest.mark.parametrize(
    "schema", [{"maxLength": 50_001}, {"minItems": 1e9}, {"items": {"maxProperties": 10**20}}]
)
def test_counts_of_a_schema_are_bounded(schema: JsonDict, plain: Vocabulary) -> None:
    with pytest.raises(GrammarError, match="at most"):
        plain.checker.check(plain.grammar(build.json_schema(schema)))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"grammars": 5}', '{"grammars": []}', "start: x", '{"grammars": [5]}']
)
def test_what_is_no_list_of_grammars(text: str, plain: Vocabulary) -> None:
    for refuse in (plain.checker.check, plain.tail.matcher):
        with pytest.raises(GrammarError):
            refuse(text)


names = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=6)
leaves = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
        st.integers(-99, 99),
        st.integers(0, 99),
    ),
    st.builds(
        lambda low, span: {"type": "string", "minLength": low, "maxLength": low + span},
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    st.builds(
        lambda values: {"enum": values},
        st.lists(names | st.integers(-9, 9) | st.booleans(), min_size=1, max_size=4, unique_by=json.dumps),
    ),
    st.builds(lambda value: {"const": value}, names),
    st.just({"type": "string", "format": "ipv4"}),
    st.just({"type": "string", "pattern": "^[a-z]{1,3}-[0-9]$"}),
)


def _object(properties: dict[str, JsonDict], required: int) -> JsonDict:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties)[:required],
        "additionalProperties": False,
    }


schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(_object, st.dictionaries(names, inner, max_size=3), st.integers(0, 3)),
        st.builds(
            lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 2)
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=schemas, choices=st.randoms(use_true_random=False))
def test_whatever_is_drawn_fits_its_schema(schema: JsonDict, choices: object, plain: Vocabulary) -> None:
    grammar = plain.grammar(build.json_schema(schema))
    plain.checker.check(grammar)
    matcher = plain.tail.matcher(grammar)
    tokens: list[int] = []
    while not matcher.is_done:
        allowed = np.flatnonzero(matcher.allowed(plain.head.vocab_size)).tolist()
        token = choices.choice(allowed)  # type: ignore[attr-defined]
        if token in plain.eos:
            break
        tokens += [token, *matcher.take(token)]
        assert len(tokens) < 5000
    text = plain.head.decode(tokens)
    jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
