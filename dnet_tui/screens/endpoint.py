"""The endpoint's panel: its address, what to paste elsewhere, what it is doing and what went wrong lately."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar, Protocol

from rich.console import Group
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.reactive import reactive
from textual.screen import ModalScreen
from textual.widgets import Static

from dnet_tui.keys import key_text
from dnet_tui.look import Look, fg, look_of
from dnet_tui.serving import EndpointState, Off, On, Starting, curl_text, environment_text
from dnet_tui.widgets.key_bar import Hint, KeyBar

_MOST_ERRORS = 5
_ON = Hint("endpoint.switch", "switches it on")
_OFF = Hint("endpoint.switch", "switches it off")
_PORT = Hint("endpoint.free_port", "takes the free port")
_CURL = Hint("endpoint.copy_curl", "copies curl")
_ENVIRONMENT = Hint("endpoint.copy_environment", "copies the environment")
_CLOSE = Hint("endpoint.close", "closes")


class Switch(Protocol):
    """Who switches; the new state comes back as `EndpointScreen.state`."""

    def start_endpoint(self, port: int | None = None) -> None: ...
    def stop_endpoint(self) -> None: ...


class EndpointScreen(ModalScreen[None]):
    """Shows `state`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss", "Close", id="endpoint.close"),
        Binding("f4", "switch", "On or off", id="endpoint.switch", tooltip="Switch the endpoint on or off"),
        Binding("enter", "free_port", "Free port", id="endpoint.free_port",
                tooltip="Take the free port that is offered"),
        Binding("c", "copy_curl", "Copy curl", id="endpoint.copy_curl"),
        Binding("e", "copy_environment", "Copy environment", id="endpoint.copy_environment"),
    ]  # fmt: skip

    state: reactive[EndpointState] = reactive(Off(), init=False, repaint=False)

    def __init__(
        self, switch: Switch, state: EndpointState, note: str = "", now: Callable[[], float] = time.time
    ) -> None:
        super().__init__()
        self._now = now
        self._switch = switch
        self._note = note
        self._text = Static(id="endpoint-text", markup=False)
        self.set_reactive(EndpointScreen.state, state)

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="endpoint-box"):
            yield self._text
            yield KeyBar()

    def on_mount(self) -> None:
        self.query_one("#endpoint-box").border_title = "OpenAI endpoint"
        self.query_one("#endpoint-box").focus()
        self._show()

    def watch_state(self) -> None:
        if self.is_mounted:
            self._show()

    def _show(self) -> None:
        look = look_of(self.app.current_theme, self.app.theme_variables)
        match self.state:
            case Off() as off:
                parts = _off(off, look, key_text(self.app, "endpoint.free_port"))
                keys = [_ON, *([_PORT] if off.free_port is not None else [])]
            case Starting():
                parts = [Text("Starting …", look.dim)]
                keys = [_OFF]
            case On() as on:
                parts = _on(on, look, self._now())
                keys = [_CURL, _ENVIRONMENT, _OFF]
        if self._note:
            parts = [Text(self._note, fg(look.vivid(look.warning))), Text(), *parts]
        self.query_one(KeyBar).hints = (*keys, _CLOSE)
        self._text.update(Group(*parts))

    def action_switch(self) -> None:
        if not isinstance(self.state, Off):
            self._switch.stop_endpoint()
        else:
            self._switch.start_endpoint()

    def action_free_port(self) -> None:
        if isinstance(self.state, Off) and self.state.free_port is not None:
            self._switch.start_endpoint(self.state.free_port)

    def action_copy_curl(self) -> None:
        if isinstance(self.state, On):
            self.app.copy_to_clipboard(curl_text(self.state))
            self.notify("Copied: a curl command.")

    def action_copy_environment(self) -> None:
        if isinstance(self.state, On):
            self.app.copy_to_clipboard(environment_text(self.state, shows_key=True))
            self.notify("Copied: two lines for a shell.")


def _off(off: Off, look: Look, key: str) -> list[Text]:
    """`key` takes the free port."""
    if off.problem is None:
        text = "Off. Switched on, it answers OpenAI clients from the ring that answers the chat."
        return [Text(text, look.dim)]
    parts = [Text(f"✗ {off.problem}", look.bad)]
    if off.free_port is not None:
        parts += [Text(), Text(f"Port {off.free_port} is free: {key} takes it.", look.text)]
    return parts


def _on(on: On, look: Look, now_unix_s: float) -> list[Text]:
    activity = on.activity
    heading = fg(look.primary)
    parts = [
        Text.assemble(("● ", fg(look.success)), (on.url, fg(look.foreground, bold=True))),
        Text(),
        Text("for a shell, and most clients", heading),
        Text(environment_text(on, shows_key=False), look.text),
        Text(),
        Text("to try it", heading),
        Text(curl_text(on), look.text),
        Text(),
        Text(
            f"in flight: {len(activity.requests)} · served since it is on: {activity.requests_total}", heading
        ),
    ]
    parts += [
        Text(f"{r.method} {r.path} from {r.client} · {now_unix_s - r.begun_unix_s:.0f} s", look.text)
        for r in activity.requests
    ]
    errors = list(activity.last_errors)[-_MOST_ERRORS:]
    if errors:
        parts += [Text(), Text("answered with an error, newest first", heading)]
        parts += [
            Text.assemble(
                (f"{time.strftime('%H:%M:%S', time.localtime(e.at_unix_s))} ", look.dim),
                (f"{e.status} ", look.bad),
                (f"{e.method} {e.path}: {e.message}", look.text),
            )
            for e in reversed(errors)
        ]
    return parts
