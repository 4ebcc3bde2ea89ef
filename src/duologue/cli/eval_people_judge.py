"""`duologue eval people judge`: a model votes."""

import argparse
import random
from pathlib import Path

from duologue.cli.command import Command, Option
from duologue.cli.progress import progress
from duologue.errors import require

_EPILOG = """\
The model gets the two conversations as text with times, on random sides and without names. Its ballots bear its name,
and have a part of their own in the report; they are never counted as people's. An interrupted run continues where it
stopped, and asks again only where the model gave no vote.

examples:
  duologue eval people judge study --url http://127.0.0.1:8000/v1 --judge-model my-judge
  duologue eval people judge study --url https://api.example.org/v1 --judge-model big --api-key-env JUDGE_KEY
"""

COMMAND = Command(
    "let a model vote",
    "Fill ballots with the votes of a model behind an OpenAI-compatible URL.",
    options=(
        Option("study", type=Path, metavar="STUDY", help="the study's folder"),
        Option("--url", required=True, metavar="URL", help="the endpoint, such as http://127.0.0.1:8000/v1"),
        Option("--judge-model", required=True, metavar="NAME", help="the model at the endpoint"),
        Option("--api-key-env", metavar="VAR", help="environment variable with the endpoint's key"),
        Option("--seed", type=int, default=0, metavar="N", help="seed of the order and the sides (default 0)"),
    ),
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Ask about every example."""
    from duologue.data.chat_client import ChatClient
    from duologue.evaluation.people.judge import judge_all
    from duologue.evaluation.people.study import Form, Study

    study = Study.complete(args.study)
    require(study.form is Form.PAIRS, "a model cannot talk to the systems itself; it judges recorded conversations")
    client = ChatClient(args.url, args.judge_model, purpose="judge", api_key_env=args.api_key_env)
    with progress(f"Asking {args.judge_model}") as stage:
        num, num_partial = judge_all(study, client, chance=random.Random(args.seed), progress=stage)
    print(f"{args.judge_model}: {num} ballots, {num_partial} of them without some votes")
    return 0
