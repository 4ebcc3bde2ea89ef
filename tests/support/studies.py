"""Studies for tests: a scripted model, recorded turn by turn and as duplex."""

from functools import partial
from pathlib import Path

from duologue.engine.replay import read_script
from duologue.evaluation import case_study
from duologue.evaluation.behaviour.player import kind_of
from duologue.evaluation.people.scripts import Example, write_scripts
from duologue.evaluation.people.study import Form, Study
from serving import scripted_model

ANSWER = "Once there was a fisherman who lived by the sea, and every morning he rowed out before the sun was up."
EXAMPLES = (
    Example("fisherman", ("tell me a story", "what about dogs", "and cats"), "a test"),
    Example("dogs", ("what about dogs", "mhm", "tell me all"), "a test"),
)


def recorded(folder: Path, examples: tuple[Example, ...] = EXAMPLES) -> Study:
    """A study of `turns` against `duplex`."""
    write_scripts(folder / "scripts", examples, seed=0)
    study = Study(folder, Form.PAIRS, {})
    scripts = {name: read_script(study.script(name)) for name in study.examples}
    for name in ("turns", "duplex"):
        model = scripted_model({"tell me a story": ANSWER, "what about dogs": "Dogs are loyal.", "and cats": "Cats?"})
        play = partial(case_study.events, kind=kind_of(name, model), model=model)
        study = study.record_all(name, scripts, play, {"session": name}, progress=lambda *_: None)
    return study
