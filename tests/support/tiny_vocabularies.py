"""Tiny vocabularies as GGUF files without weights, one for each kind of tokenizer in llama.cpp."""

from pathlib import Path

from gguf import GGUFWriter, TokenType

_NAMES = """
default minicpm5 llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano deepseek-llm
deepseek-coder deepseek-v3 spark2_5 youtu falcon mpt starcoder gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es
jina-v2-de a.x-4.0 mellum modern-bert jais-2 gemma4 granite-embed-multi-311m sarvam-moe jina-v1-en jina-v2-code
roberta-bpe refact command-r qwen2 deepseek-r1-qwen kormo f2llmv2 qwen35 stablelm2 olmo dbrx smaug-bpe poro-chat
glm4 glm5 chatglm-bpe viking jais tekken smollm codeshell bloom gpt3-finnish exaone exaone4 exaone-moe chameleon
minerva-7b megrez gpt-4o llama4 kanana2 talkie granite-embed-multi-97m tiny_aya cohere2moe superbpe trillion
granite-docling bailingmoe bailingmoe2 llada-moe seed-coder hunyuan hunyuan-dense joyai-llm kimi-k2 grok-2 afmoe
laguna minimax-m2 solar-open ufakzeka mellum2
"""

PRE_TOKENIZERS = tuple(_NAMES.split())
"""Values of `tokenizer.ggml.pre` that llama.cpp knows and that the tokenizer accepts."""

WORDS = ["▁the", "▁fox", "▁a", "▁", *"thefoxa"]


def write_bpe(path: Path, pre: str) -> Path:
    """Byte-level BPE with the 256 bytes and a few merges, split by the pre-tokenizer `pre`."""
    merges = ["t h", "th e", "a a", *(f"{first} {second}" for first in "0123456789" for second in "0123456789")]
    tokens = [_byte_letter(byte) for byte in range(256)] + [merge.replace(" ", "") for merge in merges]
    extra = {"add_tokenizer_pre": pre, "add_token_merges": merges}
    return _write(path, "gpt2", tokens, [TokenType.NORMAL] * len(tokens), extra)


def write_sentencepiece(path: Path, *, has_bytes: bool = True) -> Path:
    """SentencePiece, with or without the tokens of single bytes."""
    special = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    num_bytes = 256 if has_bytes else 0
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(num_bytes)), *dict.fromkeys(WORDS)]
    num_words = len(tokens) - 3 - num_bytes
    kinds = special + [TokenType.BYTE] * num_bytes + [TokenType.NORMAL] * num_words
    scores = [0.0] * (3 + num_bytes) + [-float(rank) for rank in range(num_words)]
    return _write(path, "llama", tokens, kinds, {"add_token_scores": scores, "add_unk_token_id": 0})


def write_wordpiece(path: Path) -> Path:
    """WordPiece, as in BERT."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS)]
    kinds = [TokenType.CONTROL] * 5 + [TokenType.NORMAL] * (len(tokens) - 5)
    ids = {"add_pad_token_id": 0, "add_unk_token_id": 1, "add_bos_token_id": 2, "add_sep_token_id": 3}
    return _write(path, "bert", tokens, kinds, {**ids, "add_mask_token_id": 4}, architecture="bert")


def write_unigram(path: Path) -> Path:
    """SentencePiece unigram, as in T5."""
    tokens = ["<pad>", "</s>", "<unk>", *dict.fromkeys(WORDS)]
    kinds = [TokenType.CONTROL, TokenType.CONTROL, TokenType.UNKNOWN] + [TokenType.NORMAL] * (len(tokens) - 3)
    extra = {"add_token_scores": [-float(rank) for rank in range(len(tokens))], "add_unk_token_id": 2}
    return _write(path, "t5", tokens, kinds, extra, architecture="t5")


def write_rwkv(path: Path) -> Path:
    """The trie of RWKV."""
    tokens = ["<s>", *(chr(code) for code in range(1, 128)), "the"]
    return _write(path, "rwkv", tokens, [TokenType.CONTROL] + [TokenType.NORMAL] * 128, {})


def _write(path, model, tokens, kinds, extra, *, architecture="llama") -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types([int(kind) for kind in kinds])
    for method, value in extra.items():
        getattr(writer, method)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def _byte_letter(byte: int) -> str:
    """The character that stands for a byte in byte-level BPE."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [other for other in range(256) if other not in printable].index(byte))
