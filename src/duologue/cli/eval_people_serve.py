"""`duologue eval people serve`: people watch or talk, and vote."""

import argparse
from pathlib import Path

from duologue.cli.command import Command, Option
from duologue.errors import MissingDependency

_EPILOG = """\
The page is at http://127.0.0.1:8090/. Conversations are in random order, on random sides and without names. Votes are
written to STUDY/ballots.sqlite one by one, so none is lost; a person who comes back in the same browser continues.

To let others in, set a token in the environment, listen on an address they can reach, and give them a link with the
token: http://HOST:8090/#token=… The page is served without encryption; docs/security.md says how to add it. Settings in
the environment (DUOLOGUE_SERVE_TOKENS, _HOSTS, _ORIGINS) are those of `duologue serve`.

examples:
  duologue eval people serve study
  DUOLOGUE_SERVE_TOKENS=a-long-secret duologue eval people serve study --host 0.0.0.0
"""

COMMAND = Command(
    "let people watch, or talk, and vote",
    "Serve the page on which people compare two systems.",
    options=(
        Option("study", type=Path, metavar="STUDY", help="the study's folder"),
        Option("--host", default="127.0.0.1", help="address to listen on; any but loopback needs a token"),
        Option("--port", type=int, default=8090, metavar="N", help="port; 0 takes a free one (default 8090)"),
    ),
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal arrives."""
    try:
        from duologue.evaluation.people.app import create_app
        from duologue.server.config import ServerConfig
        from duologue.server.run import serve
    except ImportError as error:
        raise MissingDependency('the page needs additional packages: pip install "duologue[server]"') from error
    from duologue.evaluation.people.study import Study

    study = Study.complete(args.study)
    config = ServerConfig.read(flags={"host": args.host, "port": args.port})
    serve(config, lambda config: create_app(study, config))
    return 0
