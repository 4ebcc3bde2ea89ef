"""What a set of samples is mixed from, and in which proportions: our recipes, and the paper's (DUO, section 3.1)."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from duologue.errors import refuse
from duologue.types import InputState

PROCESS, INCOMPLETE, IGNORE, STOP = (
    InputState.PROCESS,
    InputState.INCOMPLETE,
    InputState.IGNORE,
    InputState.STOP,
)


LANGUAGES = ("en", "zh")
"""English and Mandarin: there are lines of our own, and rules, for these."""

MANDARIN_UNSEEN = frozenset({"zh/xquad", "zh/home_assistant"})
"""Whole Mandarin sources that only the test uses."""

MANDARIN_CALIBRATION = frozenset({"zh/qald"})
"""Whole Mandarin sources that only the held-out samples use."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A mix of samples. The same recipe and folder give the same samples.

    Names of sources in the folder of another language than English begin with it: `zh/xquad`.
    """

    num_samples: int = 112_000  # for training
    num_dev: int = 1_600  # for early stopping and thresholds, from other documents of the same sources
    num_test: int = 300  # approximate size of a group of the test on unseen sources
    in_context: float = 0.7  # share of samples inside a dialogue
    speaking: float = 0.5  # share of these where the assistant is in the middle of an answer
    asked: float = 0.7  # share of the others that the assistant ends with a question
    follow_ups: float = 0.6  # share of dialogues chosen so that the user's next turn is known and may be drawn
    texts_per_context: int = 10  # inputs that share one dialogue, so that its KV is computed once
    shares: dict[InputState, float] = field(
        default_factory=lambda: {PROCESS: 0.39, INCOMPLETE: 0.20, IGNORE: 0.33, STOP: 0.08}
    )
    own_lines: bool = True  # use the lines of this package besides those of the sources
    cuts: str = "unfinished"  # "unfinished": only cuts that are clearly not complete requests; "random": any
    max_words: int = 35  # longer utterances are not used whole
    max_context_words: int = 90  # contexts keep the newest turns that fit
    systems: tuple[str | None, ...] = (  # None is the template's own; the others keep the adapter independent of it
        None, None, None, None, "", "You are a helpful assistant.", "Answer briefly.",
    )  # fmt: skip
    unseen: frozenset[str] = frozenset(  # whole sources that only the test uses
        {"slurp", "webquestions", "self-instruct-seeds", "ray_questions", "restaurant8k", "nlupp",
         "rev16-podcasts", "parliament-committees", "topical_chat_spoken",
         "icsi_meeting_acts", "disfl_qa", "sgd_switches"}
    )  # fmt: skip
    calibration: frozenset[str] = frozenset(  # whole sources that only the held-out samples use
        {"banking77", "mycroft_skills", "triviaqa", "personality-chat", "advising",
         "earnings22-calls", "wizard_chat", "libritts", "stage_plays"}
    )  # fmt: skip
    families: tuple[frozenset[str], ...] = (  # sources on one subject, which together weigh as much as one source
        frozenset({"camrest", "dstc10_spoken", "multiwoz", "woz2"}),
        frozenset({"sparc_cosql", "staqc_titles", "wikisql"}),
        frozenset({"bitcoin_talks", "optech_podcast"}),
        frozenset({"self_dialogue", "topical_chat"}),
    )
    per_source: int = 12_000  # utterances kept in memory per training source
    seed: int = 0
    languages: tuple[str, ...] = ("en",)  # in equal shares; see `LANGUAGES`

    def __post_init__(self) -> None:
        numbers = (self.num_samples, self.num_dev, self.texts_per_context, self.num_test + 1)
        shares = {name: getattr(self, name) for name in ("in_context", "speaking", "asked", "follow_ups")}
        refuse(
            [
                (min(numbers) < 1, "a recipe needs at least one sample, one held out, and one text per context"),
                *((not 0 <= x <= 1, f"{name} is a share between 0 and 1, got {x}") for name, x in shares.items()),
                (self.cuts not in ("unfinished", "random"), f'cuts is "unfinished" or "random", got {self.cuts!r}'),
                (
                    not self.languages or len(set(self.languages)) < len(self.languages),
                    f"languages names each language once, got {self.languages}",
                ),
                *((one not in LANGUAGES, f"no language {one!r}; there are {LANGUAGES}") for one in self.languages),
                (min(self.shares.values(), default=0) <= 0, "shares gives each state of the set a positive number"),
            ]
        )

    def in_languages(self, languages: Collection[str]) -> "Recipe":
        """This recipe for `languages`; whole Mandarin sources are held out as English ones are."""
        held = MANDARIN_UNSEEN, MANDARIN_CALIBRATION
        unseen, calibration = held if "zh" in languages else (frozenset[str](), frozenset[str]())
        return replace(
            self,
            languages=tuple(languages),
            unseen=self.unseen | unseen,
            calibration=self.calibration | calibration,
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values. English alone is not mentioned, as in the files of earlier versions."""
        return {
            **{name: value for name, value in asdict(self).items() if name != "languages" or value != ("en",)},
            "shares": {state.value: share for state, share in self.shares.items()},
            "unseen": sorted(self.unseen),
            "calibration": sorted(self.calibration),
            "families": [sorted(family) for family in self.families],
            "systems": list(self.systems),
        }


STARTER = Path(__file__).with_name("starter")
"""A small corpus of our own, in the public domain. `scripts/starter` writes it."""

RECIPES: dict[str, Recipe] = {
    "duologue": Recipe(),
    "starter": Recipe(
        num_samples=8_000,
        num_dev=600,
        num_test=240,
        unseen=frozenset({"shopping", "health", "radio", "street"}),
        calibration=frozenset({"travel", "phone"}),
        families=(),
    ),
    "paper": Recipe(
        num_samples=10_000,
        in_context=0.0,
        shares={PROCESS: 1.0, INCOMPLETE: 1.0, IGNORE: 1.0},
        own_lines=False,
        cuts="random",
        systems=(None,),
    ),
}
"""Ours, the same for the corpus of the package, and the mix of the DUO paper (section 3.1): queries whole or cut
anywhere, talk to others, no context."""
