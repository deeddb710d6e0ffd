"""The settings' file: whatever stands in it, the app starts, says what is wrong, and loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnet_core.settings import paths
from dnet_core.types.generation import SamplingParams
from dnet_tui.chat import AS_THE_MODEL_LIKES, ChatOverrides, ChatSettings, Queued, asked, request_for
from dnet_tui.chat_form import ChatForm, form_of
from dnet_tui.preferences import Preferences, load_preferences, save_preferences


def write(folder: Path, text: str) -> Path:
    path = folder / "config" / "terminal.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def kept_aside(path: Path) -> list[str]:
    return [p.read_text(encoding="utf-8") for p in path.parent.glob("terminal.json.as-it-was-*")]


def test_every_setting_says_what_it_is() -> None:
    for model in (Preferences, ChatForm):
        for name, field in model.model_fields.items():
            assert field.description, name


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    told = Preferences(theme="light", temperature=0.0, max_tokens=5, keys={"chat.new": "f9"})
    path = tmp_path / "new" / "terminal.json"
    save_preferences(path, told)
    assert load_preferences(path) == (told, ())
    assert list(path.parent.iterdir()) == [path], "nothing is left beside it"


def test_no_file_is_no_problem(tmp_path: Path) -> None:
    assert load_preferences(tmp_path / "no" / "file.json") == (Preferences(), ())


def test_nothing_is_kept_in_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DNET_HOME")
    monkeypatch.chdir(tmp_path)
    for place in (paths().terminal_settings, paths().chats, paths().logs):
        assert place.is_absolute()
        assert not place.is_relative_to(tmp_path)


def test_a_broken_file_says_the_line_and_is_kept(tmp_path: Path) -> None:
    text = '{\n  "theme": "light",\n  "temperature" 0.5\n}'
    path = write(tmp_path, text)
    found, (problem,) = load_preferences(path)
    assert found == Preferences()
    assert "line 3" in problem
    assert "defaults are used" in problem
    assert kept_aside(path) == [text]
    assert path.read_text(encoding="utf-8") == text, "reading changes nothing"


def test_a_wrong_value_costs_only_itself(tmp_path: Path) -> None:
    text = (
        '{\n "theme": "light",\n "temperature": 900,\n "tempratur": 1,\n "save_history": "yes",\n'
        ' "keys": {"chat.new": 7, "chat.again": "f9"}\n}'
    )
    path = write(tmp_path, text)
    found, problems = load_preferences(path)
    assert found == Preferences(theme="light", keys={"chat.again": "f9"})
    said = "\n".join(problems)
    assert (
        "'temperature' (line 3): input should be less than or equal to 100, not 900; it stays empty." in said
    )
    assert "'tempratur' (line 4): there is no such setting." in said
    assert "'save_history' (line 5)" in said
    assert "'chat.new' must be a text" in said
    assert kept_aside(path) == [text]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from([*Preferences.model_fields, "x"]), inner)
        ),
        max_leaves=12,
    )
)
def test_no_file_stops_the_start(tmp_path_factory: pytest.TempPathFactory, told: object) -> None:
    path = write(tmp_path_factory.mktemp("settings"), json.dumps(told))
    found, problems = load_preferences(path)
    assert isinstance(found, Preferences)
    if isinstance(told, dict) and not problems:
        assert found.model_dump() == {**Preferences().model_dump(), **told}


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    path.write_bytes(b"\xff\xfe\x00")
    found, (problem,) = load_preferences(path)
    assert found == Preferences()
    assert "cannot be read" in problem


def test_the_command_line_goes_before_the_settings() -> None:
    told = Preferences(temperature=0.3, top_p=0.4, system_prompt="Be kind.", max_tokens=9).chat
    left = frozenset({"top_k", "min_p", "repetition_penalty"})
    sampling = SamplingParams(temperature=0.3, top_p=0.4, max_tokens=9)
    assert told == ChatSettings(sampling, "Be kind.", left_to_model=left)
    assert ChatOverrides().over(told) == told
    given_ = ChatOverrides(system="Be brief.", temperature=0.0, seed=7).over(told)
    assert given_ == ChatSettings(
        SamplingParams(temperature=0.0, top_p=0.4, max_tokens=9, seed=7), "Be brief.", left_to_model=left
    )
    with pytest.raises(ValueError, match="top_p"):
        ChatOverrides(top_p=2.0)


def test_what_is_left_to_the_model_is_what_its_authors_recommend() -> None:
    recommended = SamplingParams(temperature=0.6, top_p=0.95, top_k=20)
    settings = ChatForm(temperature=0.0, max_tokens=9).applied_to(ChatSettings())
    turns = (asked("Why?", Queued("")),)
    request = request_for(turns, settings, recommended)
    assert request.sampling == SamplingParams(temperature=0.0, top_p=0.95, top_k=20, max_tokens=9)
    assert request_for(turns, AS_THE_MODEL_LIKES, recommended).sampling == recommended
    assert request_for(turns, ChatSettings(), recommended).sampling == SamplingParams()


def test_the_form_of_a_chat_says_the_same() -> None:
    settings = ChatSettings(
        SamplingParams(
            temperature=0.2, top_p=0.3, top_k=4, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.5,
            frequency_penalty=-0.5, seed=3, max_tokens=8, stop=("x",),
        ),
        "Be kind.",
        thinks=True,
    )  # fmt: skip
    assert form_of(settings).applied_to(settings) == settings, "what the form does not show is left alone"
    assert ChatForm().applied_to(ChatSettings()) == AS_THE_MODEL_LIKES
    assert form_of(AS_THE_MODEL_LIKES) == ChatForm()
