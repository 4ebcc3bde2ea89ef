"""The marks that reasoning models put around a thought, and which of them a text leaves open."""

from duologue.types import ThoughtMarks

THOUGHT_MARKS = (
    ThoughtMarks("<think>", "</think>"),  # Qwen3, DeepSeek-R1, MiniMax-M2, GLM, and most others
    ThoughtMarks("<thinking>", "</thinking>"),
    ThoughtMarks("<thought>", "</thought>"),
    ThoughtMarks("<seed:think>", "</seed:think>"),  # Seed-OSS
    ThoughtMarks("[THINK]", "[/THINK]"),  # Magistral
    ThoughtMarks("◁think▷", "◁/think▷"),  # Kimi
    ThoughtMarks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ThoughtMarks("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ThoughtMarks(  # harmony: two channels of one answer
        "<|channel|>analysis<|message|>",
        "<|channel|>final<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
)


def open_thought(text: str) -> ThoughtMarks | None:
    """The marks of the thought that `text` opens and does not close."""
    at, marks = max(((text.rfind(marks.opener), marks) for marks in THOUGHT_MARKS), key=lambda found: found[0])
    return marks if at >= 0 and marks.closer not in text[at:] else None
