"""The installed command in a real terminal, with a real ring of two shards and the sample model.

Waits look at the screen until it shows what is expected, within a deadline.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tty
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dnet_core.settings import child_environment

COMMAND = Path(sys.executable).parent / "dnet-tui"
SAMPLE = "smollm2-135m-instruct"
READY_S = 120.0
ANSWER_S = 120.0
QUICK_S = 30.0  # a deadline, not a target: the machine may be busy

pytestmark = [
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
    pytest.mark.skipif(not COMMAND.exists(), reason="dnet-tui is not installed beside this Python"),
]


class Terminal:
    """A shell in a tmux session of its own."""

    def __init__(self, home: Path, width: int, height: int) -> None:
        self._socket = f"dnet-{uuid.uuid4().hex[:12]}"
        environment = child_environment(DNET_HOME=str(home), PS1="shell> ", TERM="xterm-256color")
        for name in ("COLUMNS", "LINES"):  # pytest's workers set them: the terminal's own size is what counts
            environment.pop(name, None)
        self._tmux(
            "-f", "/dev/null", "new-session", "-d", "-x", str(width), "-y", str(height), "sh", env=environment
        )  # fmt: skip
        self.shell = psutil.Process(int(self._tmux("display-message", "-p", "#{pane_pid}")))

    def _tmux(self, *arguments: str, env: dict[str, str] | None = None) -> str:
        command = ["tmux", "-L", self._socket, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=env, timeout=20).stdout

    def hang_up(self) -> None:
        self._tmux("kill-server")

    def close(self) -> None:
        if self.shell.is_running():
            children = self.children()
            self.hang_up()
            assert psutil.wait_procs(children, timeout=QUICK_S)[1] == [], "nothing outlives its terminal"

    def type(self, text: str) -> None:
        self._tmux("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    def resize(self, width: int, height: int) -> None:
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def screen(self) -> str:
        return self._tmux("capture-pane", "-p")

    def children(self) -> list[psutil.Process]:
        return self.shell.children(recursive=True)

    def shards(self) -> list[psutil.Process]:
        return [child for child in self.children() if "dnet_core.shard.main" in child.cmdline()]

    def until(self, what: str, holds: Callable[[str], bool], within_s: float, *, running: bool = True) -> str:
        """Look at the screen until `holds`; return it. A command that is `running` must not end before."""
        deadline = time.monotonic() + within_s
        while not holds(screen := self.screen()):
            assert not (running and re.search(r"exit=\d", screen)), f"no {what}, the command ended:\n{screen}"
            assert time.monotonic() < deadline, f"no {what} within {within_s:g} s:\n{screen}"
            time.sleep(0.05)
        return screen


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dnet-home")


@pytest.fixture
def terminal(home: Path) -> Iterator[Terminal]:
    terminal = Terminal(home, 80, 24)
    yield terminal
    terminal.close()


def start(terminal: Terminal, *options: str) -> None:
    """Start the command with the sample model, unless `options` name another."""
    model = () if "--model" in options or "--demo" in options else ("--model", SAMPLE)
    terminal.type(" ".join([str(COMMAND), "--no-mdns", *model, *options]) + "; echo exit=$?")
    terminal.press("Enter")


def idle_within(shards: list[psutil.Process], seconds: float) -> bool:
    """Whether a moment comes in which no shard computes."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        before = [sum(shard.cpu_times()[:2]) for shard in shards]
        time.sleep(0.5)
        after = [sum(shard.cpu_times()[:2]) for shard in shards]
        if all(b - a < 0.1 for a, b in zip(before, after, strict=True)):
            return True
    return False


def test_start_ask_resize_stop_quit(terminal: Terminal, home: Path) -> None:
    start(terminal, "--shards", "2")
    terminal.until("model", lambda s: "● 2 devices" in s, READY_S)
    shards = terminal.shards()
    assert len(shards) == 2

    terminal.type("What is the capital of France?")
    terminal.press("Enter")
    screen = terminal.until("answer", lambda s: "✓" in s, ANSWER_S)
    assert "Paris" in screen
    assert "tok/s" in screen.splitlines()[0]

    terminal.resize(120, 40)
    screen = terminal.until("cards", lambda s: "in RAM" in s, QUICK_S)
    assert "Paris" in screen
    assert len(screen.splitlines()) == 40
    terminal.resize(70, 20)
    terminal.until("small screen", lambda s: "in RAM" not in s and "Paris" in s, QUICK_S)

    terminal.type("Write a very long story about a ship, at least two thousand words.")
    terminal.press("Enter")
    terminal.until("tokens", lambda s: "tok/s · esc stops" in s, ANSWER_S)
    terminal.press("Escape")
    terminal.until("stop", lambda s: "■ stopped after" in s, QUICK_S)
    assert idle_within(shards, QUICK_S), "a stopped answer stops the shards"

    terminal.press("C-q")
    screen = terminal.until("shell", lambda s: re.search(r"exit=\d", s) is not None, QUICK_S)
    assert "exit=0" in screen
    assert "Ask a" not in screen, "the terminal shows what it showed before"
    _, alive = psutil.wait_procs(shards, timeout=QUICK_S)
    assert alive == []
    terminal.type("stty -a | tr ';' '\\n' | grep -c ' echo '; echo tty-checked")
    terminal.press("Enter")
    screen = terminal.until("echo", lambda s: s.count("tty-checked") == 2, QUICK_S, running=False)
    assert "\n1\n" in screen, "what is typed is shown again"
    assert "Traceback" not in (home / "logs" / "dnet-tui.log").read_text(encoding="utf-8")


def test_the_first_start_offers_models_and_the_endpoint_answers_curl(
    terminal: Terminal, tmp_path: Path
) -> None:
    """As a new user: no option, a home without anything in it."""
    terminal.type(f"export DNET_HOME={tmp_path}; {COMMAND} --no-mdns --http-port 0; echo exit=$?")
    terminal.press("Enter")
    terminal.until("welcome", lambda s: "Welcome." in s and SAMPLE in s, READY_S)
    terminal.press("Escape")
    terminal.until("model", lambda s: "● 1 device" in s, READY_S)
    terminal.press("F4")
    screen = terminal.until("address", lambda s: "OPENAI_BASE_URL=" in s, QUICK_S)
    url = re.search(r"OPENAI_BASE_URL=(http://127\.0\.0\.1:\d+/v1)", screen)
    assert url is not None, screen
    terminal.press("Escape")
    question = '{"role": "user", "content": "What is the capital of France?"}'
    body = f'{{"messages": [{question}], "max_tokens": 12, "temperature": 0}}'
    done = subprocess.run(
        ["curl", "-s", f"{url[1]}/chat/completions", "-H", "content-type: application/json", "-d", body],
        check=True, capture_output=True, text=True, timeout=ANSWER_S,
    )  # fmt: skip
    assert "Paris" in done.stdout
    terminal.until("endpoint", lambda s: "API :" in s.splitlines()[0], QUICK_S)
    terminal.press("C-q")
    terminal.until("question", lambda s: "is switched off" in s, QUICK_S)
    terminal.press("Enter")
    terminal.until("shell", lambda s: "exit=0" in s, QUICK_S)
    gone = subprocess.run(
        ["curl", "-s", f"{url[1]}/models"], check=False, capture_output=True, timeout=QUICK_S
    )
    assert gone.returncode == 7, "nothing listens any more"
    terminal.type(f"{COMMAND} --no-mdns; echo exit=$?")
    terminal.press("Enter")
    terminal.until(
        "second start", lambda s: "● 1 device" in s and "Welcome." not in s, READY_S, running=False
    )
    terminal.press("C-q")
    terminal.until("shell", lambda s: s.count("exit=0") == 2, QUICK_S, running=False)


def test_the_demonstration_runs_in_a_terminal(terminal: Terminal) -> None:
    start(terminal, "--demo", "2", "--model", "mlx-community/Qwen3-30B-A3B-4bit")
    terminal.until("model", lambda s: "DEMO" in s and "● 2 devices" in s, READY_S)
    terminal.type("What is the capital of France?")
    terminal.press("Enter")
    terminal.until("answer", lambda s: "Paris" in s and "✓" in s, QUICK_S)
    assert terminal.shards() == [], "nothing is started"
    terminal.press("C-q")
    terminal.until("shell", lambda s: "exit=0" in s, QUICK_S)


def test_theme_key_and_plan_are_changed_in_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type(f"export DNET_HOME={tmp_path}; {COMMAND} --demo 4; echo exit=$?")
    terminal.press("Enter")
    terminal.until("model", lambda s: "● 4 devices" in s, READY_S)

    terminal.press("C-p")
    terminal.until("palette", lambda s: "Search for commands" in s, QUICK_S)
    terminal.type("Theme: light")
    terminal.until("theme", lambda s: "Theme: light" in s, QUICK_S)
    terminal.press("Down", "Enter")
    settings = tmp_path / "config" / "terminal.json"
    until_file(settings, '"theme": "light"')

    terminal.press("F2")
    terminal.until("settings", lambda s: "changes hold at once" in s, QUICK_S)
    terminal.press("F6")
    terminal.until("keys", lambda s: "enter changes a key" in s, QUICK_S)
    terminal.press("Down", "Enter")
    terminal.until("question", lambda s: "Press the new key for" in s, QUICK_S)
    assert "Start a new conversation" in terminal.screen()
    terminal.press("F10")
    until_file(settings, '"chat.new": "f10"')
    terminal.until("its new key", lambda s: "F10" in s and "Press the new key" not in s, QUICK_S)
    terminal.press("Escape")
    terminal.until("chat", lambda s: "changes hold at once" not in s, QUICK_S)

    terminal.press("F12")
    terminal.until("plan", lambda s: "as predicted" in s or "no token measured yet" in s, QUICK_S)
    terminal.press("j", "Right")
    terminal.until("edit", lambda s: "by hand · not loaded" in s, QUICK_S)
    terminal.press("Enter")
    terminal.until("load", lambda s: "○ 4 devices" in s, QUICK_S)
    terminal.until("model", lambda s: "● 4 devices" in s, READY_S)
    terminal.press("F12")
    terminal.until("plan", lambda s: "─ loaded ─╯" in s, QUICK_S)
    terminal.press("q")  # an escape right before another key would be read as one with alt
    terminal.until("chat", lambda s: "─ loaded ─╯" not in s, QUICK_S)
    terminal.press("C-q")
    terminal.until("shell", lambda s: "exit=0" in s, QUICK_S)


def until_file(path: Path, text: str) -> None:
    deadline = time.monotonic() + QUICK_S
    while not path.exists() or text not in path.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline, f"{path} has no {text}"
        time.sleep(0.05)


def test_after_a_kill_the_chat_is_there_and_said_to_be(home: Path, tmp_path: Path) -> None:
    (home / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache").symlink_to(home / "cache")  # the model, and how fast this machine is
    terminal = Terminal(tmp_path, 80, 24)
    try:
        start(terminal)
        terminal.until("model", lambda s: "● 1 device" in s, READY_S)
        terminal.type("What is the capital of France?")
        terminal.press("Enter")
        terminal.until("answer", lambda s: "✓" in s, ANSWER_S)
        app = next(p for p in terminal.children() if any(part.endswith("dnet-tui") for part in p.cmdline()))
        shards = terminal.shards()
        deadline = time.monotonic() + QUICK_S
        while not any(b"Paris" in file.read_bytes() for file in tmp_path.rglob("chats.db*")):
            assert time.monotonic() < deadline, "an answer is saved when it ends"
            time.sleep(0.05)
        app.kill()
        assert psutil.wait_procs(shards, timeout=QUICK_S)[1] == [], "shards end with what started them"
    finally:
        terminal.close()
    terminal = Terminal(tmp_path, 80, 24)  # what was killed could not restore its own
    try:
        start(terminal)
        terminal.until("notice", lambda s: "dnet-tui was killed the last time" in s, READY_S)
        terminal.press("C-f")
        terminal.until("history", lambda s: "What is the capital of France?  just now" in s, QUICK_S)
        terminal.press("Enter")
        terminal.until("chat", lambda s: "Paris" in s and "just now" not in s, QUICK_S)
        terminal.press("C-q")
        terminal.until("shell", lambda s: "exit=0" in s, QUICK_S)
        start(terminal)
        terminal.until("model", lambda s: "● 1 device" in s, READY_S, running=False)
        assert "was killed" not in terminal.screen(), "said once"
    finally:
        terminal.close()


def test_a_model_that_is_not_there_is_said_in_the_chat(terminal: Terminal) -> None:
    start(terminal, "--model", "./no/such/model")
    screen = terminal.until("reason", lambda s: "not loaded" in s and "✗" in s, READY_S)
    assert "no/such/model" in screen
    assert "Traceback" not in screen
    terminal.press("C-q")
    terminal.until("shell", lambda s: "exit=0" in s, QUICK_S)


def test_sigterm_restores_the_terminal(terminal: Terminal) -> None:
    start(terminal)
    terminal.until("screen", lambda s: "Ask a" in s, QUICK_S)
    app = next(p for p in terminal.children() if any(part.endswith("dnet-tui") for part in p.cmdline()))
    shards = terminal.shards()
    app.terminate()
    screen = terminal.until("shell", lambda s: re.search(r"exit=\d", s) is not None, QUICK_S)
    assert "Ask a" not in screen
    assert psutil.wait_procs(shards, timeout=QUICK_S)[1] == []


def test_nothing_is_left_when_the_terminal_is_closed(terminal: Terminal) -> None:
    start(terminal)
    terminal.until("device", lambda s: "1 device" in s, READY_S)
    everything = terminal.children()
    assert len(everything) >= 2
    terminal.hang_up()
    assert psutil.wait_procs(everything, timeout=QUICK_S)[1] == []


def test_a_terminal_of_another_session_is_closed_in_mid_answer(tmp_path: Path) -> None:
    """Nobody sends a signal then, and what draws has nowhere to write to."""
    master, slave = os.openpty()
    tty.setraw(slave)
    environment = child_environment(TERM="xterm-256color", DNET_HOME=str(tmp_path))
    command = [COMMAND, "--demo", "4"]
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    ) as process:
        os.close(slave)
        seen = b""
        while b"Ask a" not in seen:
            seen += os.read(master, 65536)
        os.write(master, b"tell me a long story\r")
        while b"stop" not in seen:
            seen += os.read(master, 65536)
        os.close(master)
        try:
            process.wait(QUICK_S)
        finally:
            process.kill()


def test_a_browser_needs_no_terminal(tmp_path: Path) -> None:
    """As textual-serve starts it: the screen goes out through pipes."""
    environment = child_environment(
        TEXTUAL_DRIVER="textual.drivers.web_driver:WebDriver",
        COLUMNS="80",
        ROWS="24",
        DNET_HOME=str(tmp_path),
    )
    command = [COMMAND, "--demo", "1"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        assert process.stdout is not None
        seen = b""
        while b"DEMO" not in seen:
            news = process.stdout.read1(65536)
            assert news, f"it ended: {seen!r}"
            seen += news
        process.terminate()
        process.stdout.read()
    assert b"__GANGLION__" in seen


def test_without_a_terminal_it_says_so() -> None:
    done = subprocess.run(
        [COMMAND], check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == ("dnet-tui: a terminal is needed as stdin and stderr; without one, run dnet-api\n")
