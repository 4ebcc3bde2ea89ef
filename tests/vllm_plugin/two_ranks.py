"""Ask the model in a folder on two ranks, and print the probabilities. Arguments: the folder, and prompts as JSON.

A program of its own, since vLLM starts processes for the ranks.
"""

import json
import sys
from pathlib import Path

from duologue.backends.vllm.plugin import CONFIG_KEY, ExportedAdapter
from duologue.testing.vllm_engine import decisions, engine

if __name__ == "__main__":
    folder, prompts = Path(sys.argv[1]), json.loads(sys.argv[2])
    adapter = ExportedAdapter.from_json(json.loads((folder / "config.json").read_text())[CONFIG_KEY])
    with engine(folder, tensor_parallel_size=2) as llm:
        print(json.dumps(decisions(llm, prompts, adapter)))
