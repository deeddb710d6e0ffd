"""F3: how this chat asks: system prompt, thinking, sampling."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from dnet_core.types.generation import RECOMMENDABLE, SamplingParams
from dnet_tui.chat import ChatSettings
from dnet_tui.chat_form import ChatForm, form_of
from dnet_tui.widgets.form import FORM_HINTS, Form
from dnet_tui.widgets.key_bar import Hint, KeyBar


class ChatSettingsScreen(ModalScreen[ChatSettings]):
    """Edits `settings`; what is lawful when it closes is the result.

    `can_think`: it can be switched. `recommended`: by the model's authors; None while no model is there.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f3", "done", "Close", id="chat_settings.close")]

    def __init__(
        self, settings: ChatSettings, recommended: SamplingParams | None, *, can_think: bool
    ) -> None:
        super().__init__()
        self._settings = settings
        self._recommended = recommended
        self._can_think = can_think

    def compose(self) -> ComposeResult:
        without = frozenset() if self._can_think else frozenset({"thinking"})
        with VerticalScroll(id="settings-box", can_focus=False):
            yield Form(form_of(self._settings), without, self._placeholders())
            if not self._can_think:
                yield Static("This model cannot be told whether to think.", classes="form-hint")
            yield KeyBar(*FORM_HINTS, Hint("chat_settings.close", "closes"))

    def _placeholders(self) -> dict[str, str]:
        if self._recommended is None:
            return {}
        return {name: f"{getattr(self._recommended, name):g}" for name in RECOMMENDABLE}

    def on_mount(self) -> None:
        box = self.query_one("#settings-box")
        box.border_title = "This chat"
        box.border_subtitle = "holds from the next answer on"

    @on(Form.Changed)
    def _take(self, event: Form.Changed) -> None:
        assert isinstance(event.value, ChatForm), "the form was made from one"
        self._settings = event.value.applied_to(self._settings)

    def action_done(self) -> None:
        self.dismiss(self._settings)
