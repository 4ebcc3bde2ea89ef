"""What is said in the benchmarks: questions to the assistant, and words addressed to others."""

import random

_TOPICS = (
    "the moon", "honey bees", "old lighthouses", "the violin", "sourdough bread", "black holes", "chess openings",
    "the river Nile", "learning to swim", "steam engines", "why leaves turn red", "a rainy day in Lisbon",
    "the first bicycle", "green tea", "how glass is made", "owls", "a good night's sleep", "the number zero",
    "winter in Norway", "a small garden on a balcony", "paper maps", "volcanoes", "the history of the pencil",
    "running a marathon", "tides", "the smell of rain", "typewriters", "migrating birds", "a pot of soup", "sundials",
)  # fmt: skip
_FORMS = (
    "Tell me about {}.", "what do you know about {}", "Can you explain {} to a child?", "Write a short poem about {}.",
    "give me three facts about {}", "What is the most surprising thing about {}?", "I would like to hear more of {}",
    "How would you describe {} to somebody who has never heard of it?", "tell me a story with {} in it please",
    "Why do people care about {}?", "Okay, and now something else: {}!", "{} – what should I know?",
)  # fmt: skip
_ASIDES = (
    "no, the keys are on the table by the door", "and coming up after the break we have the weather for the weekend",
    "Did you feed the cat already?", "mhm", "yeah yeah I will be there at seven, do not wait for me",
    "the committee then turned to the second item of its agenda", "Mum, where is my other shoe", "oh really",
    "she walked down the narrow lane and did not look back once", "please mind the gap between the train and it",
    "Two coffees to go, one with oat milk.", "that was the third goal for the visitors in ten minutes", "uh huh",
    "I told him that we could not possibly finish it before Thursday", "shh, I am listening to it",
)  # fmt: skip
STOPS = ("stop", "okay stop", "be quiet please", "never mind")
RESUMES = ("go on", "Please continue.", "keep going")


def question(chance: random.Random) -> str:
    """A question to the assistant."""
    return chance.choice(_FORMS).format(chance.choice(_TOPICS))


def aside(chance: random.Random) -> str:
    """Something said to or by somebody else."""
    return chance.choice(_ASIDES)


def grown(text: str, chance: random.Random, *, parts: int) -> list[str]:
    """`text` as a recogniser reports it while it grows: at most `parts` prefixes, the last one complete."""
    words = text.split(" ")
    ends = sorted(chance.sample(range(1, len(words)), min(parts - 1, len(words) - 1)))
    return [" ".join(words[:end]) for end in ends] + [text]
