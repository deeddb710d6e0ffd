"""A form made from a pydantic model: one row per field; what is wrong stands under the field it is about.

Every change that is lawful is told at once as a new frozen value; one that is not changes nothing.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Input, Select, Static

from dnet_tui.keys import key_text
from dnet_tui.preferences import message_of
from dnet_tui.widgets.key_bar import Hint

FORM_HINTS = (Hint("form.next", "next field"), Hint("form.previous", "field before"))


class Toggle(Widget, can_focus=True):
    """On or off, told by sign and word."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter,space", "switch", "Switch", id="form.toggle")]

    value: reactive[bool] = reactive(False, init=False)

    @dataclass
    class Changed(Message):
        toggle: Toggle
        value: bool

        @property
        def control(self) -> Toggle:
            return self.toggle

    def __init__(self, value: bool, *, id: str) -> None:  # noqa: A002  Textual's word
        super().__init__(id=id)
        self.set_reactive(Toggle.value, value)

    def render(self) -> str:
        does = f" · {key_text(self.app, 'form.toggle')} switches" if self.has_focus else ""
        return ("● on" if self.value else "○ off") + does

    def watch_value(self, value: bool) -> None:
        self.post_message(self.Changed(self, value))

    def action_switch(self) -> None:
        self.value = not self.value

    def on_click(self) -> None:
        self.value = not self.value


class Choice(Select[str], inherit_bindings=False):
    """One of several words; up and down leave it, as they do everywhere in a form."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,space", "show_overlay", "Show the choices", id="form.choose")
    ]


class Form(Vertical):
    """Edits `value`, but for the fields in `without`; `placeholders` say what an empty field means."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,tab", "app.focus_next", "Next field", id="form.next"),
        Binding("up,shift+tab", "app.focus_previous", "Field before", id="form.previous"),
    ]

    @dataclass
    class Changed(Message):
        """The form says `value` now; `field` is what was changed."""

        value: BaseModel
        field: str

    def __init__(
        self,
        value: BaseModel,
        without: frozenset[str] = frozenset(),
        placeholders: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(classes="form")
        self.value = value
        self._placeholders = placeholders
        self._problems: dict[str, str] = {}  # of fields whose text is not taken
        self._fields = {n: f for n, f in type(value).model_fields.items() if n not in without}

    def compose(self) -> ComposeResult:
        for name, field in self._fields.items():
            hint = Static(field.description or "", classes="form-hint", markup=False)
            wide = field.annotation is str
            with Horizontal(classes="form-row -wide" if wide else "form-row"):
                yield Static(name.replace("_", " "), classes="form-name", markup=False)
                yield self._editor(name, field)
                if not wide:
                    yield hint
            if wide:
                hint.add_class("-below")
                yield hint
            problem = Static("", classes="form-problem", id=f"problem-{name}", markup=False)
            problem.display = False
            yield problem

    def focus_first(self) -> None:
        """Focus the first field."""
        self.query("Choice, Toggle, Input").first().focus()

    def _editor(self, name: str, field: FieldInfo) -> Toggle | Choice | Input:
        value = getattr(self.value, name)
        choices = _choices(field.annotation)
        if choices:
            options = [(choice, choice) for choice in choices]
            return Choice(options, value=value, allow_blank=False, id=f"field-{name}", compact=True)
        if field.annotation is bool:
            return Toggle(value, id=f"field-{name}")
        text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
        placeholder = self._placeholders.get(name, "")
        return Input(text, placeholder, id=f"field-{name}", compact=True, select_on_focus=False)

    @on(Input.Changed)
    @on(Toggle.Changed)
    @on(Select.Changed)
    def _changed(self, event: Input.Changed | Toggle.Changed | Select.Changed) -> None:
        event.stop()
        widget_id = event.control.id or ""
        name = widget_id.removeprefix("field-")
        if name not in self._fields:
            return
        try:
            value = event.value
            told = _read(value, self._fields[name].annotation) if isinstance(value, str) else value
            changed = type(self.value).model_validate({**self.value.model_dump(), name: told})
        except ValidationError as error:
            self._refuse(name, f"must be {message_of(error)}")
            return
        except ValueError:
            self._refuse(name, "must be a number")
            return
        self._refuse(name, None)
        if changed != self.value:
            self.value = changed
            self.post_message(self.Changed(changed, name))

    def _refuse(self, name: str, problem: str | None) -> None:
        """Say why what stands in the field `name` is not taken; None: it is."""
        self._problems.pop(name, None)
        if problem is not None:
            self._problems[name] = problem
        shown = self.query_one(f"#problem-{name}", Static)
        if problem is not None:
            shown.update(f"✗ {problem}")
        shown.display = problem is not None

    def on_unmount(self) -> None:
        """With the form its problems go: what was not taken is said once more."""
        for name, problem in self._problems.items():
            self.app.notify(
                f"{name.replace('_', ' ')} {problem}: it stays as it was.", severity="warning", markup=False
            )


def _choices(annotation: Any) -> tuple[str, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()


def _read(text: str, annotation: Any) -> object:
    """The value that `text` stands for in a field of this type. Raises ValueError."""
    kinds = _kinds(annotation)
    if type(None) in kinds and not text.strip():
        return None
    if int in kinds:
        return int(text)
    if float in kinds:
        return float(text)
    return text


def _kinds(annotation: Any) -> set[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return {kind for part in typing.get_args(annotation) for kind in _kinds(part)}
    return {annotation}
