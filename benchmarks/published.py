"""Figures of the DUO paper (arXiv 2409.11727) that stand beside ours in the documents: quoted, not run here."""

from dataclasses import dataclass

TABLE_1_MODELS = ("MiniCPM 2.4 B", "+ Duplex, 5,000K", "+ Duplex, 10K", "+ Duo, 10K")
"""The base, and what it was trained to be, with the number of samples."""

TABLE_1 = {
    "cmmlu": (51.30, 48.53, 50.56, 51.23),
    "mmlu": (53.45, 53.76, 52.89, 53.24),
    "bbh": (37.25, 36.35, 35.81, 36.55),
    "humaneval": (50.00, 49.39, 51.81, 46.34),
    "mbpp": (38.09, 38.30, 34.70, 37.27),
    "gsm8k": (42.30, 46.10, 40.26, 43.90),
    "arc_easy": (84.60, 85.19, 83.12, 84.81),
    "arc_challenge": (69.80, 70.05, 69.43, 69.88),
    "hellaswag": (61.40, 60.79, 50.85, 60.24),
}
"""Accuracy by benchmark, as lm-evaluation-harness names it, for each of the models. The paper used UltraEval."""

TABLE_2_COLUMNS = (
    *("AlpacaEval", "CommonEval", "SD-QA, PANDA", "SD-QA, GPT", "IFEval, prompts", "IFEval, instructions"),
    *("AdvBench, refused", "overall"),
)
TABLE_2 = {
    "LLaMA-Omni": (3.70, 3.46, 40.14, 39.24, 10.15, 19.58, 11.35, 41.83),
    "Mini-Omni": (1.95, 2.02, 23.69, 4.16, 8.99, 18.17, 37.12, 28.80),
    "Qwen2Audio": (3.95, 3.48, 41.34, 31.77, 20.73, 31.12, 99.13, 62.04),
    "VITA": (3.38, 2.15, 31.28, 24.59, 18.12, 27.51, 26.73, 37.62),
    "Moshi": (2.01, 1.60, 15.01, 16.27, 6.38, 13.76, 44.23, 28.43),
    "Qwen2Audio-Duo": (3.51, 3.98, 39.91, 29.53, 21.08, 32.58, 99.13, 62.09),
}
"""Spoken questions of VoiceBench by model, in the order of the columns."""


@dataclass(frozen=True, slots=True)
class Responding:
    """A row of the paper's Table 3, in percent: whether a model responds to what asks for a response, and ignores the
    rest."""

    model: str
    trained: str
    precision: float
    recall: float
    f1: float

    @property
    def ignored_kept(self) -> float:
        """The share of rows to ignore that were responded to; it follows from the others and the number of rows."""
        hits = ASKED * self.recall / 100
        return 100 * round(hits * (100 / self.precision - 1)) / IGNORED


ASKED, IGNORED = 1_683, 500  # rows of the paper's test that ask for a response, and those to ignore
TABLE_3 = (
    Responding("MiniCPM 2.4 B", "nothing", 73.81, 81.88, 77.63),
    Responding("MiniCPM 2.4 B, 5 examples", "nothing", 75.91, 89.13, 81.99),
    Responding("Qwen2Audio", "nothing", 74.52, 84.79, 79.32),
    Responding("Qwen2Audio, 5 examples", "nothing", 79.64, 57.16, 66.55),
    Responding("VITA", "for duplex", 93.36, 87.76, 90.47),
    Responding("MiniCPM-Duo 2.4 B", "all weights, 10,000 samples", 86.35, 100.00, 92.68),
    Responding("Qwen2Audio-Duo", "a LoRA", 99.22, 99.81, 99.02),
)
