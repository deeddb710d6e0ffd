"""`dnet-api`: the coordinator without a screen, serving OpenAI clients."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys

from dnet_core import __version__, plan_commands
from dnet_core.api.app import EndpointOptions, endpoint
from dnet_core.api.turns import QueuePolicy
from dnet_core.cluster_options import add_cluster_options, read_cluster_options
from dnet_core.coordinator import Coordinator
from dnet_core.doctor import main as doctor
from dnet_core.errors import DnetError
from dnet_core.loading import LoadedModel
from dnet_core.option_types import add_endpoint_options, one_of
from dnet_core.settings import read_keys
from dnet_core.store.catalog import SAMPLE_ID
from dnet_core.tasks import TaskScope

GRPC_PORT = 58080
"""Where other devices reach the shard of this machine unless asked otherwise."""

DESCRIPTION = """\
Serve a language model that runs on all your devices together, to any OpenAI client.

The endpoint answers at once; until the model is loaded it says 503 and why.
"""

EXAMPLES = f"""\
examples:
  dnet-api                                     the sample model, {SAMPLE_ID}, on port 8080
  dnet-api --shards 2                          the same, cut over two shard processes here
  dnet-api --model Qwen/Qwen3-0.6B             a Hugging Face id: fetched once, then kept
  dnet-api --host 0.0.0.0 --api-key-file keys  for other machines too; one key per line

without serving (each has --help):
  dnet-api doctor                              what is wrong here, and what to do
  dnet-api profile device | links | model ID   what this device, the links, a model are like
  dnet-api solve --devices F... --model F|ID   where the layers would go, from saved profiles

then:
  curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\
       -d '{{"messages": [{{"role": "user", "content": "Hello!"}}]}}'
  OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=none  any OpenAI client
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dnet-api",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dnet-api {__version__}")
    parser.add_argument(
        "--log-level",
        default="warning",
        choices=["debug", "info", "warning", "error"],
        help="what is written to stderr (default: %(default)s)",
    )
    ring = parser.add_argument_group("the ring")
    ring.add_argument(
        "--model",
        default=SAMPLE_ID,
        metavar="ID_OR_PATH",
        help="Hugging Face id, local directory or .gguf file (default: the sample, %(default)s)",
    )
    ring.add_argument("--no-load", action="store_true", help="load nothing now: wait for POST /v1/load_model")
    add_cluster_options(parser, GRPC_PORT)
    http = add_endpoint_options(parser, "the endpoint")
    http.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="web pages of this origin may use it, like https://chat.example ('*': all; default: none)",
    )
    http.add_argument(
        "--queue",
        type=one_of(QueuePolicy),
        choices=list(QueuePolicy),
        default=QueuePolicy.FAIR,
        help="who is next: clients in turn, or requests as they came (default: %(default)s)",
    )
    return parser.parse_args(arguments)


async def serve(options: argparse.Namespace) -> None:
    """Serve until a signal comes. Raises DnetErrors when it cannot start or the model cannot be loaded."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    keys = read_keys(options.api_key_file)
    wishes = EndpointOptions(options.sessions, options.waiting, options.queue, tuple(options.allow_origin))
    async with (
        Coordinator(read_cluster_options(options)) as coordinator,
        endpoint(coordinator, options.host, options.http_port, keys, wishes) as served,
        TaskScope() as tasks,
    ):
        listens = f"dnet-api {__version__} listens on {served.url}"
        if options.no_load:
            print(f"{listens}; nothing is loaded", flush=True)
            await stop.wait()
            return
        print(f"{listens}; loading {options.model}", flush=True)
        stopping = tasks.start(stop.wait())
        loading = tasks.start(_load(coordinator, options.model))
        await asyncio.wait({stopping, loading}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done() and (failure := loading.result()) is not None:
            raise failure
        await stop.wait()


async def _load(coordinator: Coordinator, model: str) -> DnetError | None:
    """Load `model` and say so; returns why it could not be loaded."""
    try:
        loaded = await coordinator.load(model)
    except DnetError as error:
        return error
    print(f"ready: {_placement(loaded)}", flush=True)
    return None


def _placement(loaded: LoadedModel) -> str:
    places = ", ".join(
        f"{a.peer} {' '.join(str(window) for window in a.windows)}" for a in loaded.plan.assignments
    )
    return f"{loaded.model}, context of {loaded.context_tokens:,} tokens, layers on {places}"


def _run_plan_command(words: list[str]) -> None:
    try:
        plan_commands.run(words)
    except DnetError as error:
        print(f"dnet-api: {error}", file=sys.stderr)
        sys.exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Run `dnet-api`; exits 0 after a signal, 1 when something keeps it from serving, 2 for wrong options."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == [doctor.WORD]:
        doctor.main("dnet-api", words[1:])
    if words[:1] and words[0] in plan_commands.COMMANDS:
        _run_plan_command(words)
        return
    options = parse(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        asyncio.run(serve(options))
    except DnetError as error:
        print(f"dnet-api: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
