"""What the terminal's user has set: one frozen model, kept in one file.

The file is the user's: what cannot be read in it is said, the rest holds, and the file as it was is kept
aside before it is written again. Every setting is read somewhere; one that nobody reads has no place here.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from dnet_core.files import replace_text
from dnet_tui.chat import AS_THE_MODEL_LIKES, ChatSettings

THEMES = {"dark": "textual-dark", "light": "textual-light", "ansi": "ansi-dark"}
"""The setting's words and Textual's names."""

Temperature = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Preferences(BaseModel):
    """All settings; the description of each is what the screen shows."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    theme: Literal["dark", "light", "ansi"] = Field(
        default="dark", description="Colours; ansi takes the terminal's own."
    )
    show_thoughts: bool = Field(
        default=False, description="Show what models think before they answer, unfolded."
    )
    save_history: bool = Field(
        default=True, description="Keep chats on this machine. From the next start on."
    )
    reopen_last_chat: bool = Field(default=False, description="Begin with the chat that was open last.")
    export_folder: str = Field(default="", description="Where exported chats go; empty: beside the history.")
    system_prompt: str = Field(default="", description="Told to the model at the start of every new chat.")
    temperature: Temperature | None = Field(
        default=None, description="New chats: 0 takes the likeliest token; empty: as the model's authors say."
    )
    top_p: Share | None = Field(
        default=None, description="New chats: the likeliest tokens of this share; empty: as the authors say."
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="New chats: the longest answer; empty: up to the end of the context."
    )
    keys: dict[str, Annotated[str, StringConstraints(min_length=1)]] = Field(
        default_factory=dict, description="Keys that you changed, by the name of what they do."
    )

    @property
    def chat(self) -> ChatSettings:
        """How new chats ask."""
        told = AS_THE_MODEL_LIKES.with_set(
            temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens
        )
        return replace(told, system=self.system_prompt or None)


def load_preferences(path: Path) -> tuple[Preferences, tuple[str, ...]]:
    """Read the file at `path`; return the settings and what is to be said about the file.

    A value that cannot be used is replaced by its default. The file is then copied aside, so that the next
    change loses nothing. Never raises for what stands in the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Preferences(), ()
    except (OSError, UnicodeDecodeError) as error:
        return Preferences(), (f"{path} cannot be read ({error}): the defaults are used.",)
    try:
        told = json.loads(text)
    except json.JSONDecodeError as error:
        aside = _kept_aside(path, text)
        problem = f"{path}, line {error.lineno}: {error.msg}. The defaults are used; {aside}"
        return Preferences(), (problem,)
    if not isinstance(told, dict):
        aside = _kept_aside(path, text)
        return Preferences(), (f"{path} holds no settings: the defaults are used; {aside}",)
    problems: list[str] = []
    while True:
        try:
            found = Preferences.model_validate(told)
        except ValidationError as error:
            first = error.errors()[0]
            problems.append(_dropped(told, first, text))
        else:
            break
    if problems:
        problems.append(_kept_aside(path, text).capitalize())
    return found, tuple(problems)


def save_preferences(path: Path, preferences: Preferences) -> None:
    """Write what differs from the defaults; the file is never half written. Raises OSError."""
    text = json.dumps(preferences.model_dump(exclude_defaults=True), ensure_ascii=False, indent=2) + "\n"
    replace_text(path, text)


def message_of(error: ValidationError) -> str:
    """What is wrong with the first field that is."""
    text = str(error.errors()[0]["msg"])
    return text.removeprefix("Input should be ").removeprefix("Value error, ")


def _dropped(told: dict[str, Any], error: Any, text: str) -> str:
    """Take the value that `error` is about out of `told`; say so."""
    name = str(error["loc"][0])
    line = next((n for n, row in enumerate(text.splitlines(), 1) if f'"{name}"' in row), None)
    where = f"'{name}' (line {line})" if line is not None else f"'{name}'"
    if error["type"] == "extra_forbidden":
        del told[name]
        return f"{where}: there is no such setting."
    if name == "keys" and isinstance(told[name], dict) and len(error["loc"]) > 1:
        key = str(error["loc"][1])
        del told[name][key]
        return f"{where}: the key of '{key}' must be a text; it keeps its own."
    value = json.dumps(told.pop(name), ensure_ascii=False)
    default = Preferences.model_fields[name].get_default(call_default_factory=True)
    instead = "it stays empty" if default is None else f"{json.dumps(default)} is used"
    return f"{where}: {error['msg'].lower()}, not {value}; {instead}."


def _kept_aside(path: Path, text: str) -> str:
    """Copy the file as it was; say where it is, or why it is not."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{path.name}.as-it-was-{stamp}")
    try:
        aside.write_text(text, encoding="utf-8")
    except OSError as error:
        return f"it could not be kept aside ({error})."
    return f"your file is kept as {aside}."
