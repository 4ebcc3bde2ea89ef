"""No text ends the process, whatever the vocabulary, and ids equal those of a plain call of llama.cpp.

Calls that might end the process run in a subprocess.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from soak import IS_LONG, size

pytest.importorskip("llama_cpp")
import tiny_vocabularies
from duologue.backends.llamacpp.deep_stack import call_with_stack
from duologue.backends.llamacpp.tokenizer import MAX_TEXT, GgufTokenizer
from duologue.errors import UnsupportedModel, UsageError

pytestmark = pytest.mark.llamacpp

ONE_OF_EACH = (  # splitting expression
    *("default", "deepseek-coder", "deepseek-llm", "deepseek-v3", "exaone-moe", "falcon", "gpt-4o", "jais-2"),
    *("llama-bpe", "minicpm5", "poro-chat", "qwen2", "seed-coder", "smollm", "superbpe", "tekken", "tiny_aya", "youtu"),
)

RUNS = """
import random, sys, threading
from pathlib import Path
from duologue.backends.llamacpp.tokenizer import GgufTokenizer

length, num_mixed, paths = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
RUNS = ["a", "A", "Aa", "0", " ", "\\n", "\\r\\n", "\\t", "!", "'s", "\\u6771", "\\u304b", "\\ud55c", "\\U0001f642",
        "e\\u0301", "\\u0301", "\\u0639", "a ", " a!", "\\xa0", " \\n", "0a", "_", "\\u0e01", "\\u0915\\u0940",
        "\\U0001f469\\u200d\\U0001f467", "\\u6771 ", "|", "\\u0436", "\\xb2", "\\u3000", "\\u200b", "\\x00", "\\x1c"]


def attack():
    chance = random.Random(0)
    for path in paths:
        tokenizer = GgufTokenizer.from_file(Path(path))
        for run in RUNS:
            tokenizer.encode((run * length)[:length])
        for _ in range(num_mixed):
            text = "".join(chance.choice(RUNS) * chance.choice([1, 1, 2, 3, 30]) for _ in range(chance.randrange(60)))
            assert tokenizer.encode(text) == tokenizer._tokenize(text.encode(), False), (path, text)
        print(path, flush=True)


threading.stack_size(1 << 20)  # as a thread may have it
thread = threading.Thread(target=attack)
thread.start()
thread.join()
"""

PLAIN_CALL = """
import sys, threading
from pathlib import Path
from duologue.backends.llamacpp.tokenizer import GgufTokenizer

tokenizer = GgufTokenizer.from_file(Path(sys.argv[1]))
threading.stack_size(1 << 20)
thread = threading.Thread(target=lambda: tokenizer._tokenize(b"a" * 20_000, False))
thread.start()
thread.join()
"""


def python(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    command = [sys.executable, "-c", script, *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="stacks of other systems differ")
def test_a_plain_call_of_llamacpp_ends_the_process(tmp_path: Path) -> None:
    """The defect that the tokenizer works around. When this fails, `deep_stack` may be obsolete."""
    path = tiny_vocabularies.write_bpe(tmp_path / "tekken.gguf", "tekken")
    assert python(PLAIN_CALL, str(path)).returncode < 0


def test_no_run_of_characters_ends_the_process(tmp_path: Path) -> None:
    names = tiny_vocabularies.PRE_TOKENIZERS if IS_LONG else ONE_OF_EACH
    paths = [tiny_vocabularies.write_bpe(tmp_path / f"{name}.gguf", name) for name in names]
    paths += [
        tiny_vocabularies.write_sentencepiece(tmp_path / "spm.gguf"),
        tiny_vocabularies.write_wordpiece(tmp_path / "wpm.gguf"),
        tiny_vocabularies.write_unigram(tmp_path / "ugm.gguf"),
        tiny_vocabularies.write_rwkv(tmp_path / "rwkv.gguf"),
    ]
    length, num_mixed = ("100000", "2000") if IS_LONG else ("8000", "20")
    done = python(RUNS, length, num_mixed, *map(str, paths))
    assert (done.returncode, done.stdout.split()) == (0, [str(path) for path in paths]), done.stderr[-2000:]


def test_long_runs_of_digits_are_split_where_superbpe_splits_them(tmp_path: Path) -> None:
    tokenizer = GgufTokenizer.from_file(tiny_vocabularies.write_bpe(tmp_path / "model.gguf", "superbpe"))
    chance = random.Random(0)
    for _ in range(size(5, 200)):
        pieces = [
            "a",
            " ",
            "\xb2",
            "\uff11",
            ".",
            "",
            *("".join(chance.choices("0123456789", k=n)) for n in (700, 1301)),
        ]
        text = "".join(chance.choices(pieces, k=5)) + pieces[-1]
        assert tokenizer.encode(text) == tokenizer._tokenize(text.encode(), False)
    assert len(tokenizer.encode("7" * 100_000)) == 66_667, "which takes minutes unless it is split"


def test_a_text_that_no_context_could_hold_is_refused(tmp_path: Path) -> None:
    tokenizer = GgufTokenizer.from_file(tiny_vocabularies.write_bpe(tmp_path / "tiny.gguf", "tekken"))
    assert len(tokenizer.encode("a" * 501)) == 251, "two letters are one token"
    with pytest.raises(UsageError, match="1048577 characters is too long"):
        tokenizer.encode("a" * (MAX_TEXT + 1))


@pytest.mark.parametrize("kind", ["whitespace", "no bytes"])
def test_a_vocabulary_with_which_llamacpp_aborts_is_refused(tmp_path: Path, kind: str) -> None:
    """Two spaces abort with the pre-tokenizer "whitespace"; an unknown letter aborts without tokens for bytes."""
    path = tmp_path / "model.gguf"
    if kind == "whitespace":
        tiny_vocabularies.write_bpe(path, "whitespace")
    else:
        tiny_vocabularies.write_sentencepiece(path, has_bytes=False)
    with pytest.raises(UnsupportedModel, match=r"ends the process .* torch backend"):
        GgufTokenizer.from_file(path)


def test_what_a_call_on_a_deep_stack_raises_is_raised() -> None:
    assert call_with_stack(1 << 24, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        call_with_stack(1 << 20, lambda: 1 // 0)
