"""`duologue eval people make`: a study's conversations."""

import argparse
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from duologue.cli.command import Command, Option, whole
from duologue.cli.options import MAX_ANSWER, MODEL, load_model
from duologue.cli.progress import progress
from duologue.errors import UsageError, require

if TYPE_CHECKING:
    from duologue.evaluation.people.study import Study

_EPILOG = """\
STUDY is a folder. The first call writes what the user says to STUDY/scripts: the papers' recipe, 15 examples of 3 to 7
turns with 3 to 10 empty slices between them, from the package or from DIALOGUES (files or folders of JSONL with
{"turns": [{"role": "user", "text": "…"}, …]}). Scripts of your own, in the format of `duologue replay`, may be there
already. Every call plays them to the systems that it names; a study compares two.

With --talk, nothing is recorded: each person talks to two servers (`duologue serve`), or to two kinds of conversations
of one server. The servers must accept the study's origin: --origins http://127.0.0.1:8090.

examples:
  duologue eval people make study                                         duplex against turn by turn
  duologue eval people make study dialogues.jsonl --sessions vad,duplex
  duologue eval people make study --sessions duplex --name small          two models: one call for each
  duologue eval people make study --sessions duplex --name large -m ./large.gguf
  duologue eval people make talk --talk turns=http://127.0.0.1:8080?kind=turns --talk duplex=http://127.0.0.1:8080
"""

COMMAND = Command(
    "make a study's conversations",
    "Record the same user with two systems, or name two servers that people will talk to.",
    options=(
        Option("study", type=Path, metavar="STUDY", help="the study's folder"),
        Option("dialogues", type=Path, nargs="*", metavar="DIALOGUES", help="sources of what the user says"),
        Option("--examples", type=whole(least=1), default=15, metavar="N", help="number of examples (default 15)"),
        Option("--seed", type=int, default=0, metavar="N", help="seed of the choice, lengths and pauses (default 0)"),
        Option(
            "--sessions",
            default="duplex,turns",
            metavar="NAMES",
            help="kinds of sessions, separated by commas: duplex, prompted, turns, vad, tdm, tdm_trained "
            "(default duplex,turns)",
        ),
        Option("--name", metavar="NAME", help="the system's name in the report (default: the kind of session)"),
        Option(
            "--talk",
            action="append",
            metavar="NAME=URL",
            help="a server to talk to; append ?kind=turns or ?kind=vad for another kind of conversation",
        ),
        Option("--passes", type=whole(least=1), default=10, metavar="K", help="passes per period (default 10)"),
        MAX_ANSWER,
    ),
    groups={"model": MODEL},
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Write scripts, play them, and record what happens."""
    if args.talk:
        return _talk(args)
    from duologue.engine.replay import read_script
    from duologue.evaluation import case_study
    from duologue.evaluation.behaviour.player import SESSIONS, TRAINED, kind_of
    from duologue.evaluation.results import describe_model

    kinds = args.sessions.split(",")
    known = [name for name in (*SESSIONS, TRAINED) if name != "slices"]  # needs the answers of a case
    if unknown := [name for name in kinds if name not in known]:
        raise UsageError(f"no kind of session {unknown[0]!r} here; there are {', '.join(known)}")
    require(args.name is None or len(kinds) == 1, "--name names one system; write --sessions duplex")
    study = _with_scripts(args)
    scripts = {example: read_script(study.script(example)) for example in study.examples}  # mistakes are found now
    with closing(load_model(args, sessions=2)) as model:
        for name in kinds:
            system = args.name or name
            facts = {
                "session": name,
                "model": describe_model(model),
                "passes": args.passes,
                "max_answer": args.max_answer,
            }
            play = partial(
                case_study.events,
                kind=kind_of(name, model),
                model=model,
                passes=args.passes,
                max_answer=args.max_answer,
            )
            with progress(f"Recording {system}") as stage:
                study = study.record_all(system, scripts, play, facts, progress=stage)
    print(f"systems: {', '.join(study.systems)}; examples: {len(study.examples)}; in {study.folder}")
    return 0


def _with_scripts(args: argparse.Namespace) -> "Study":
    """The study, with what the user says."""
    from duologue.evaluation.people import scripts
    from duologue.evaluation.people.study import Form, Study

    has_scripts = any((args.study / "scripts").glob("*.jsonl"))
    require(not (has_scripts and args.dialogues), f"{args.study} has scripts already; leave DIALOGUES out")
    if not has_scripts:
        if args.dialogues:
            examples = scripts.from_dialogues(args.dialogues, num=args.examples, seed=args.seed)
        else:
            examples = scripts.own_examples(args.examples)
        scripts.write_scripts(args.study / "scripts", examples, seed=args.seed)
    if not (args.study / "study.json").exists():
        return Study(args.study, Form.PAIRS, {})
    study = Study.read(args.study)
    require(study.form is Form.PAIRS, f"in {args.study}, people talk to the systems; make another study")
    return study


def _talk(args: argparse.Namespace) -> int:
    from duologue.evaluation.people.study import Form, Study
    from duologue.server.settings import KINDS

    require(not (args.study / "study.json").exists(), f"{args.study} is a study already; name another folder")
    study = Study(args.study, Form.TALK, {})
    for text in args.talk:
        name, _, url = text.partition("=")
        parts = urlsplit(url)
        kind = parse_qs(parts.query).get("kind", ["duplex"])[0]
        is_url = parts.scheme in ("http", "https") and bool(parts.netloc)
        require(is_url, f"--talk {text}: write NAME=http://HOST:PORT")
        require(kind in KINDS, f"--talk {text}: no kind {kind!r}; there are {', '.join(KINDS)}")
        url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/"
        study = study.with_system(name, {"url": url, "kind": kind})
    print(f"people talk to {' and '.join(study.systems)} in {study.folder}", file=sys.stderr)
    return 0
