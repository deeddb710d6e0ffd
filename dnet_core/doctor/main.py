"""All checks at once, and what is printed of them: the `doctor` word of the three commands."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import NoReturn

from dnet_core.cluster_options import ClusterOptions, add_cluster_options, read_cluster_options
from dnet_core.doctor import host, network
from dnet_core.doctor.finding import Check, Finding, Level, findings_of, in_thread
from dnet_core.errors import StartError

WORD = "doctor"
COLUMNS = 80

_SIGNS = {Level.GOOD: "✓", Level.WARNING: "!", Level.BROKEN: "✗"}
_PORTS = {
    "dnet-shard": ((58081, "--grpc-port"), (8081, "--http-port")),
    "dnet-api": ((58080, "--grpc-port"), (8080, "--http-port")),
    "dnet-tui": (),  # any free ones
}


async def examine(program: str, options: ClusterOptions) -> list[Finding]:
    """Everything that was found, check by check."""
    checks = (
        in_thread("software", host.software),
        Check("mlx", host.mlx, deadline_s=60),
        in_thread("memory", host.memory),
        in_thread("disk", host.disk),
        in_thread("models", host.store),
        in_thread("cluster key", host.cluster_key),
        in_thread("clock", host.clock),
        Check("thunderbolt", host.thunderbolt, deadline_s=20),
        Check("ports", partial(network.ports, _PORTS[program]), deadline_s=20),
        Check("multicast", network.multicast, deadline_s=20),
        Check("devices", partial(network.peers, options), deadline_s=90),
    )
    found = await asyncio.gather(*map(findings_of, checks))
    return [finding for findings in found for finding in findings]


def lines(findings: Sequence[Finding]) -> Iterator[str]:
    """What a person reads."""
    width = max(len(finding.check) for finding in findings) + 2
    indent = " " * (width + 2)
    for finding in findings:
        start = f"{_SIGNS[finding.level]} {finding.check:<{width}}"
        yield from _wrapped(finding.text, start, indent)
        if finding.advice is not None:
            yield from _wrapped(finding.advice, f"{indent}→ ", f"{indent}  ")
    levels = [finding.level for finding in findings]
    broken, warnings = levels.count(Level.BROKEN), levels.count(Level.WARNING)
    yield f"{broken} broken, {warnings} to look at" if broken or warnings else "all is well"


def _wrapped(text: str, start: str, indent: str) -> list[str]:
    """Within the columns, but for paths and commands, which stay in one piece."""
    wrapper = textwrap.TextWrapper(
        COLUMNS,
        initial_indent=start,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.wrap(text)


def main(program: str, arguments: Sequence[str]) -> NoReturn:
    """Run `program doctor`; exits 1 if something is broken, 2 for wrong options."""
    parser = argparse.ArgumentParser(
        prog=f"{program} {WORD}",
        description="Check what usually goes wrong, and say what to do. Takes the options that say where"
        " devices are.",
        allow_abbrev=False,
    )
    add_cluster_options(parser)
    parser.add_argument("--json", action="store_true", help="a JSON list of what was found")
    options = parser.parse_args(arguments)
    try:
        cluster = read_cluster_options(options)
    except StartError as error:
        parser.error(str(error))
    with asyncio.Runner() as runner:
        findings = runner.run(examine(program, cluster))
        if options.json:
            print(json.dumps([asdict(finding) for finding in findings], indent=2))
        else:
            print("\n".join(lines(findings)))
        sys.stdout.flush()
        # Not sys.exit: a check that was late may still sit in a thread, for which Python would wait.
        os._exit(any(finding.level is Level.BROKEN for finding in findings))
