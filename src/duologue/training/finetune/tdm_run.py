"""Training time division: a model learns to say a few tokens per slice, and `<idle>` where it should be silent.

N tokens that the assistant says, V base vocabulary.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, final

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.baselines.tdm import PROMPT, SLICE_TOKENS
from duologue.baselines.tdm_model import TdmModel
from duologue.data.duplex.build import read_dialogues, split_files
from duologue.data.duplex.timeline import DuplexDialogue
from duologue.data.progress import StageProgress, silent
from duologue.decisions.metrics import wilson
from duologue.errors import BadData, UsageError
from duologue.text.template import Template
from duologue.training.finetune.causal_model import CausalModel, made_trainable, said_logits, write_model
from duologue.training.finetune.examples import NO_LABEL
from duologue.training.finetune.loop import TrainingLoop
from duologue.training.finetune.tdm_examples import Situation, TdmBatch, Window, WindowLayout
from duologue.training.recipes import TDM_SAMPLES, FinetuneSettings
from duologue.training.runs import Say, max_positions
from duologue.training.tensors import batches_by_length
from duologue.types import Token

MAX_DEV = 100
"""Windows that are held out; at 512 tokens they have about two thousand decisions."""

_MIN_LENGTH = 128  # tokens of a sequence; a window needs room for some pairs


@dataclass(frozen=True, slots=True)
class TdmValidation:
    """The result on the held-out windows after a step."""

    step: int
    dev_loss: float  # per token that the assistant says
    dev_accuracy: float  # of the decisions: mean of the shares of right speech and of right silence
    right: dict[str, int] = field(default_factory=dict)  # decisions that were right, by situation
    num: dict[str, int] = field(default_factory=dict)  # all decisions, by situation


class TdmNetwork(CausalModel):
    """A causal language model, perhaps with a LoRA, and what it says."""

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TdmBatch) -> tuple[Tensor, Tensor]:
        """Loss [], summed over the tokens that the assistant says, and the most probable tokens [N] in their places."""
        logits = said_logits(self.base, batch.ids, batch.mask, batch.labels)
        loss = functional.cross_entropy(logits, batch.labels[batch.labels != NO_LABEL], reduction="sum")
        return loss, logits.detach().argmax(-1)


@final
class TdmTraining:
    """A run; see `TrainingLoop`."""

    losses = ("token_loss",)
    weights = (1.0,)

    def __init__(
        self,
        network: TdmNetwork,
        idle: Sequence[Token],
        train: Sequence[Window],
        dev: Sequence[Window],
        settings: FinetuneSettings,
        folder: Path,
    ) -> None:
        """Move the model to its device, and continue from the checkpoint in `folder` if there is one.

        Raises:
            UsageError: the checkpoint belongs to a run with other settings or dialogues.
        """
        self.model = network
        self._idle, self._dev, self._batch = tuple(idle), dev, settings.batch
        digest = sha256()
        for window in itertools.chain(train, dev):
            digest.update(window.ids.tobytes() + window.said.tobytes())
        self._loop: TrainingLoop[Window, TdmValidation] = TrainingLoop(
            self, train, settings, folder, validation=TdmValidation, digest=digest.hexdigest()
        )
        self.run, self.facts, self.files = self._loop.run, self._loop.facts, self._loop.files
        self.is_main, self.num_steps = self._loop.is_main, self._loop.num_steps

    def length(self, example: Window) -> int:
        """See `Objective.length`."""
        return example.length

    def shares(self, model: Any, examples: Sequence[Window], step: Sequence[Window], device: torch.device) -> Tensor:
        """See `Objective.shares`: the mean over the tokens that the assistant says."""
        loss, _ = model(TdmBatch.of(examples).to(device))
        return torch.stack([loss / sum(len(window.said) for window in step)])

    def figures(self, validation: TdmValidation) -> str:
        """See `Objective.figures`."""
        return f"{100 * validation.dev_accuracy:.1f} % right"

    def validate(self, step: int) -> TdmValidation:
        """See `Objective.validate`."""
        accelerator = self._loop.accelerator
        with accelerator.autocast():
            return evaluate(self.model, self._dev, self._idle, batch=self._batch, step=step, device=accelerator.device)


@torch.no_grad()
def evaluate(
    network: TdmNetwork,
    windows: Sequence[Window],
    idle: Sequence[Token],
    *,
    batch: int,
    step: int = 0,
    device: torch.device | None = None,
) -> TdmValidation:
    """How well the network predicts what the assistant says, and decides when it speaks, greedily."""
    network.eval()
    loss, num_tokens = 0.0, 0
    right, num = Counter[str](), Counter[str]()
    for indices in batches_by_length([window.length for window in windows], batch):
        chosen = [windows[i] for i in indices]
        found, drawn = network(TdmBatch.of(chosen).to(device or torch.device("cpu")))
        loss += float(found)
        tokens, start = drawn.tolist(), 0
        for window in chosen:
            for number, situation in window.decisions:
                is_silent = tokens[start + number] == idle[0]
                num[situation.value] += 1
                right[situation.value] += is_silent == situation.is_silent
            start += len(window.said)
        num_tokens += start
    return TdmValidation(step, loss / max(1, num_tokens), _balanced(right, num), dict(right), dict(num))


def _balanced(right: Mapping[str, int], num: Mapping[str, int]) -> float:
    """The mean of the shares of right speech and of right silence."""
    shares = []
    for is_silent in (False, True):
        names = [name for name in Situation if name.is_silent is is_silent]
        if total := sum(num.get(name, 0) for name in names):
            shares.append(sum(right.get(name, 0) for name in names) / total)
    return sum(shares) / len(shares) if shares else 0.0


def train_tdm(
    data: Path,
    out: Path,
    settings: FinetuneSettings,
    model: PreTrainedModel,
    tokenizer: HfTokenizer,
    *,
    name: str,
    num_samples: int = TDM_SAMPLES,
    progress: StageProgress = silent,
    say: Say = print,
) -> TdmModel:
    """Train `model` on the dialogues in `data`; it is changed. Write everything into `out`.

    `out` gets the changed model as a Hugging Face folder `model`, with `tdm.json` in it, for `lora` also the PEFT
    folder `lora`, and `log.jsonl` and `curve.png`. A run that was killed continues from `checkpoint.pt`. Under
    `accelerate launch`, every process calls this function; the first one writes and reports.

    Raises:
        BadData: a file cannot be read, or has no dialogue that fits.
        UsageError: `data` has no files of a split; sequences longer than the model accepts.
    """
    limit = max_positions(model)
    if not _MIN_LENGTH <= settings.max_length <= (limit or settings.max_length):
        raise UsageError(
            f"max_length {settings.max_length}: sequences have at least {_MIN_LENGTH} tokens"
            + (f", and at most the {limit} that this model accepts" if limit else "")
        )
    template = Template.from_tokenizer(tokenizer)
    room = settings.max_length - len(template.begin)
    layout = WindowLayout(template, room)
    train = _windows(data, "train", layout, num_samples)
    dev = _windows(data, "dev", layout, MAX_DEV)
    out.mkdir(parents=True, exist_ok=True)
    prompted = _prompted(data, template, room, model, settings)
    torch.manual_seed(settings.seed)  # initial values of the LoRA
    # bfloat16 would round such small updates away, so the weights themselves stay in float32
    network = TdmNetwork(made_trainable(model.float(), settings))
    training = TdmTraining(network, layout.idle, train, dev, settings, out)
    say = say if training.is_main else (lambda line: None)
    num_pairs = sum(len(window.decisions) for window in train)
    say(f"{len(train)} samples with {num_pairs} pairs of slices to train on, {len(dev)} held out")
    if layout.num_too_long:
        say(f"{layout.num_too_long} pairs are longer than {settings.max_length} tokens and were left out")
    if layout.num_cut:
        say(f"{layout.num_cut} slices have more than {SLICE_TOKENS} tokens and were cut; build with --tokenizer {name}")
    if training.files.step:
        say(f"continuing after step {training.files.step}")
    training.run(progress=progress, report=lambda found: say(_line(found, training.num_steps)))
    facts = {
        **training.facts(),
        "samples": len(train),
        "pairs": num_pairs,
        "held_out": {"samples": len(dev), "trained": asdict(training.validate(training.files.step))},
    }
    facts["held_out"]["prompted"] = asdict(prompted)
    trained = TdmModel(layout.idle, SLICE_TOKENS, base=name, facts=facts)
    if training.is_main:
        write_model(out, network.base, network.lora, tokenizer, precision=settings.precision)
        trained.save(out / "model")
        training.files.finish(out / "curve.png", say)
    return trained


def _prompted(
    data: Path, template: Template, room: int, model: PreTrainedModel, settings: FinetuneSettings
) -> TdmValidation:
    """How the model decides with nothing but a prompt, on the same windows."""
    layout = WindowLayout(template.with_system(PROMPT), room)
    windows = _windows(data, "dev", layout, MAX_DEV)
    return evaluate(TdmNetwork(model), windows, layout.idle, batch=settings.batch, device=model.device)


def _windows(data: Path, split: str, layout: WindowLayout, num: int) -> list[Window]:
    """The first `num` windows of a split.

    Raises:
        BadData: a file cannot be read, or there is no window.
        UsageError: there is no file.
    """
    files = split_files(data, split)
    if not files:
        raise UsageError(f"{data} has no {split}-*.jsonl; create it with `duologue data build-duplex`")

    def dialogues() -> Iterator[DuplexDialogue]:
        for path in files:
            yield from read_dialogues(path)

    found = itertools.islice((window for dialogue in dialogues() for window in layout.windows(dialogue)), num)
    windows = list(found)
    if not windows:
        raise BadData(f"{data} has no pair of slices in its split {split} that fits into a sequence")
    return windows


def report_lines(trained: TdmModel) -> Iterator[str]:
    """How often the model decides rightly on held-out dialogues, trained and prompted, with 95 % intervals."""
    held_out = trained.facts["held_out"]
    ours, theirs = held_out["trained"], held_out["prompted"]
    yield f"held out: decisions right, %, trained (prompted); {held_out['samples']} samples"
    for situation in Situation:
        if num := ours["num"].get(situation, 0):
            shares = (_share(one["right"].get(situation, 0), one["num"].get(situation, 0)) for one in (ours, theirs))
            yield f"  {situation} (n {num}): {next(shares)} ({next(shares)})"
    yield f"  mean of speech and silence: {100 * ours['dev_accuracy']:.1f} ({100 * theirs['dev_accuracy']:.1f})"
    yield f"held out: loss per token {ours['dev_loss']:.3f} ({theirs['dev_loss']:.3f})"


def _share(right: int, num: int) -> str:
    low, high = wilson(right, num)
    return f"{100 * right / max(1, num):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _line(found: TdmValidation, num_steps: int) -> str:
    return (
        f"step {found.step} of {num_steps}: held out {found.dev_loss:.4f} per token, "
        f"{100 * found.dev_accuracy:.1f} % of the decisions right"
    )
