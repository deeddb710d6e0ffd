"""The only reader of the environment, and the only place that knows where files live."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path, user_config_path, user_data_path, user_log_path

from dnet_core.errors import StartError


@dataclass(frozen=True, slots=True)
class Paths:
    """Where this program keeps things. `DNET_HOME` puts them all under one folder."""

    cache: Path
    config: Path
    data: Path
    logs: Path

    @property
    def models(self) -> Path:
        """Imported models: one ordinary MLX model directory each."""
        return self.cache / "models"

    @property
    def chats(self) -> Path:
        """The database of conversations."""
        return self.data / "chats.db"

    @property
    def terminal_settings(self) -> Path:
        """What the terminal's user has set."""
        return self.config / "terminal.json"

    @property
    def cluster_key(self) -> Path:
        """The file with this device's cluster key, for its owner only."""
        return self.config / "cluster.key"


def paths() -> Paths:
    """Raises StartError when `DNET_HOME` names the home of a user that there is not."""
    home = os.environ.get("DNET_HOME")
    if home:
        try:
            root = Path(home).expanduser()
        except RuntimeError as error:
            raise StartError(f"DNET_HOME is '{home}', but there is no such user: {error}") from error
        return Paths(root / "cache", root / "config", root / "data", root / "logs")
    return Paths(
        user_cache_path("dnet"), user_config_path("dnet"), user_data_path("dnet"), user_log_path("dnet")
    )


CLUSTER_KEY = "DNET_CLUSTER_KEY"


def inherited_cluster_key() -> str | None:
    """The cluster key's text, if a parent process handed it down; it goes before the file."""
    return os.environ.get(CLUSTER_KEY) or None


API_KEYS = "DNET_API_KEYS"


def inherited_api_keys() -> tuple[str, ...]:
    """API keys of the HTTP endpoint from the environment, where they stand between commas."""
    return tuple(key.strip() for key in os.environ.get(API_KEYS, "").split(",") if key.strip())


def is_over_ssh() -> bool:
    """Whether the person sits at another machine than this process."""
    return bool(os.environ.get("SSH_CONNECTION") or os.environ.get("SSH_TTY"))


def read_keys(file: Path | None) -> tuple[str, ...]:
    """The keys in `file`, one per line, or else those of the environment.

    Raises StartError when the file cannot be read or holds none.
    """
    if file is None:
        return inherited_api_keys()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise StartError(f"the API keys in {file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise StartError(f"{file} holds no API keys: it is no text") from error
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise StartError(f"{file} holds no API key: write one per line")
    return keys


def has_own_screen() -> bool:
    """Whether something else than a terminal shows the screen: a browser, through textual-serve."""
    return bool(os.environ.get("TEXTUAL_DRIVER"))


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a child process: this one's with `changes`."""
    return {**os.environ, **changes}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Every wait on another machine, by name, in seconds."""

    connect_s: float = 5.0
    describe_s: float = 5.0
    list_models_s: float = 10.0  # a large cache on a slow disk takes its time
    start_shard_s: float = 60.0
    open_session_s: float = 10.0
    close_session_s: float = 5.0
    unload_s: float = 30.0
    driver_gone_s: float = 2.0  # a head closes its streams before it loads anew: they may end a moment later
    profile_s: float = 60.0
    warm_up_s: float = 20.0  # the first import of what models need, on a slow disk
    measure_link_s: float = 30.0
    load_silence_s: float = 120.0  # between two progress reports of a load
    lap_s: float = 120.0  # between two signs of life of a session
    stop_child_s: float = 2.0


TIMEOUTS = Timeouts()
