"""`dnet-tui`: read the options, keep the terminal clean, run the app, say in one line what ended it."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from dnet_core import __version__
from dnet_core.cluster_options import ClusterOptions, add_cluster_options, read_cluster_options
from dnet_core.demo.macs import MOST_MACS
from dnet_core.errors import StartError
from dnet_core.option_types import add_endpoint_options, whole_number
from dnet_core.settings import has_own_screen, paths, read_keys
from dnet_tui.chat import ChatOverrides
from dnet_tui.wishes import EndpointWish

SAMPLE_MODEL = "smollm2-135m-instruct"
_REAL_DEVICES = ("shards", "memory", "no_local_shard", "peer", "hostfile", "grpc_port")
"""Options that a simulated cluster could not follow."""
_LOG_NAME = "dnet-tui.log"

_EXAMPLES = f"""\
examples:
  dnet-tui                                   chat with the sample model, {SAMPLE_MODEL}
  dnet-tui --shards 2                        the same model cut over two shard processes here
  dnet-tui --model Qwen/Qwen3-0.6B           a Hugging Face id: fetched once, then kept
  dnet-tui --model ~/models/my-model         a directory with config.json and safetensors
  dnet-tui --peer 192.168.1.20:58081         add the shard of another Mac
                                             (there: dnet-shard --join KEY; KEY: dnet-shard --show-key)
  dnet-tui --temperature 0 --seed 7          the same answer every time
  dnet-tui --demo 4                          the screen with four simulated Macs: no model, no network
  dnet-tui doctor                            what is wrong here, and what to do
"""


def options_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dnet-tui",
        description="Chat with a language model that runs on all your devices together.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dnet-tui {__version__}")
    ring = parser.add_argument_group("the ring")
    ring.add_argument(
        "--model",
        metavar="ID_OR_PATH",
        help="Hugging Face id, local directory or .gguf file"
        f" (default: the one chosen last; at first the sample, {SAMPLE_MODEL})",
    )
    ring.add_argument(
        "--demo",
        type=_num_macs,
        metavar="N",
        help=f"try the screen with 1 to {MOST_MACS} simulated Macs; nothing is loaded or sent",
    )
    add_cluster_options(parser)
    add_endpoint_options(parser, "the OpenAI endpoint beside the chat")
    chat = parser.add_argument_group("new chats (else as in the settings)")
    chat.add_argument("--system", metavar="TEXT", help="system prompt of new chats")
    chat.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="0 always takes the likeliest token",
    )
    chat.add_argument("--top-p", type=float, metavar="P", help="of the likeliest tokens, this share")
    chat.add_argument("--seed", type=int, metavar="S", help="make random answers repeatable")
    chat.add_argument(
        "--max-tokens", type=int, metavar="N", help="longest answer (default: up to the end of the context)"
    )
    return parser


def _num_macs(text: str) -> int:
    number = whole_number(text)
    if not 1 <= number <= MOST_MACS:
        raise argparse.ArgumentTypeError(f"between 1 and {MOST_MACS}, not {number}")
    return number


def _given(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """The options about real devices that somebody has given."""
    return [
        "--" + name.replace("_", "-")
        for name in _REAL_DEVICES
        if getattr(options, name) != parser.get_default(name)
    ]


def chat_overrides(options: argparse.Namespace) -> ChatOverrides:
    """Read the chat's options. Raises ValueError that says which is out of range."""
    return ChatOverrides(
        system=options.system,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        max_tokens=options.max_tokens,
    )


def endpoint_wish(options: argparse.Namespace) -> EndpointWish:
    """Read the endpoint's options. Raises StartError for keys that cannot be read."""
    keys = read_keys(options.api_key_file)
    return EndpointWish(options.host, options.http_port, keys, options.sessions, options.waiting)


@contextmanager
def log_instead_of_screen(log: Path) -> Iterator[None]:
    """Send what C code and logging write to stderr into `log`; Textual keeps the terminal.

    gRPC writes to file descriptor 2 behind Python's back, and Textual draws through `sys.__stderr__`: so the
    terminal moves to a new descriptor, and 2 becomes the file. Shards started meanwhile inherit it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    original = sys.__stderr__
    screen_fd = os.dup(2)
    with log.open("a", encoding="utf-8") as sink, os.fdopen(screen_fd, "w", encoding="utf-8") as screen:
        os.set_inheritable(screen_fd, False)
        os.dup2(sink.fileno(), 2)
        sys.__stderr__ = screen  # type: ignore[misc]
        handler = logging.StreamHandler(sink)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)
            screen.flush()
            os.dup2(screen_fd, 2)
            sys.__stderr__ = original  # type: ignore[misc]


def main() -> NoReturn:
    """Run `dnet-tui`; exits 0 after a normal end, 1 when something ended it, 2 for options it cannot use."""
    if sys.argv[1:2] == ["doctor"]:
        from dnet_core.doctor.main import main as examine  # noqa: PLC0415  it is slow to import

        examine("dnet-tui", sys.argv[2:])
    parser = options_parser()
    options = parser.parse_args()
    if options.demo is not None:
        given = _given(parser, options)
        if given:
            parser.error(
                f"--demo shows simulated Macs and starts nothing: leave out {' and '.join(given)},"
                " or leave out --demo"
            )
    try:
        overrides = chat_overrides(options)
        cluster = read_cluster_options(options)
        endpoint = endpoint_wish(options)
    except (ValueError, StartError) as error:
        parser.error(str(error))
    if cluster.local_shards == 0 and not cluster.looks_around:
        parser.error("--no-local-shard with --no-mdns needs at least one --peer or a --hostfile")
    streams = (("stdin", sys.stdin), ("stderr", sys.stderr))
    redirected = [name for name, stream in streams if not stream.isatty()]
    if redirected and not has_own_screen():
        _fail(f"a terminal is needed as {' and '.join(redirected)}; without one, run dnet-api")
    sys.exit(_run(options, cluster, overrides, endpoint))


def _run(
    options: argparse.Namespace, cluster: ClusterOptions, overrides: ChatOverrides, endpoint: EndpointWish
) -> int:
    log = paths().logs / _LOG_NAME
    gc.disable()  # imports make no garbage; the app collects again once it is drawn
    try:
        with log_instead_of_screen(log):
            from dnet_tui import launch  # noqa: PLC0415  Textual is imported after the options are checked

            if options.demo is None:
                fatal, code = launch.run_app(options.model, cluster, overrides, endpoint, log)
            else:
                fatal, code = launch.run_demo(options.demo, options.model, overrides, log)
    except OSError as error:
        _fail(f"cannot write the log {log}: {error.strerror}")
    if fatal is not None:
        _fail(fatal)
    if code:
        _fail(f"ended by a mistake of its own; the log has the details: {log}")
    return code


def _fail(message: str) -> NoReturn:
    print(f"dnet-tui: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
