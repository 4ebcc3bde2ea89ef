"""Import time: `import duologue` is light.

Claim: `import duologue` adds less than 0.3 s to the start of Python and loads no heavy library; the command line starts
without one too.

Why: names are imported when they are first used, and heavy libraries only by the modules that need them.

How: fresh interpreters with and without the import take turns; the difference of the medians counts. The loaded
libraries are read from `sys.modules` of such an interpreter.
"""

import json
import statistics
import subprocess
import sys
import time

import measuring

HEAVY = ("torch", "transformers", "llama_cpp", "gguf", "peft", "safetensors", "numpy", "jinja2", "prompt_toolkit")
LIMIT_S = 0.3
CASES = {
    "import duologue": "import duologue",
    "duologue --help": "import sys; sys.argv = ['duologue', '--help']\nfrom duologue.cli.main import main\nmain()",
}


def seconds(code: str) -> float:
    """The time that a fresh interpreter takes for `code`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def loaded(code: str) -> list[str]:
    """Heavy libraries that a fresh interpreter has loaded after `code`."""
    ask = "import atexit, json, sys\natexit.register(lambda: print(json.dumps(list(sys.modules)), file=sys.stderr))\n"
    ask += code
    done = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True)
    modules = json.loads(done.stderr.splitlines()[-1])
    return [name for name in HEAVY if name in modules]


def main() -> int:
    """Run it. The exit status is 1 if `import duologue` is too slow or loads a heavy library."""
    parser = measuring.arguments(__doc__, with_model=False)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    measurement = measuring.begin(args)
    times: dict[str, list[float]] = {"python": [], **{name: [] for name in CASES}}
    for _ in range(args.repeats):
        for name, values in times.items():
            values.append(seconds(CASES.get(name, "pass")))
    bare = statistics.median(times["python"])
    cases = {
        name: {"adds_s": round(statistics.median(times[name]) - bare, 4), "heavy_libraries": loaded(code)}
        for name, code in CASES.items()
    }
    result = {"python_s": round(bare, 4), "limit_s": LIMIT_S, "cases": cases}
    rows = [
        (name, f"{case['adds_s']:.3f}", ", ".join(case["heavy_libraries"]) or "none") for name, case in cases.items()
    ]
    measuring.finish(args, measurement, result, ("", "adds (s)", "heavy libraries loaded"), rows)
    first = cases["import duologue"]
    return int(first["adds_s"] >= LIMIT_S or bool(first["heavy_libraries"]))


if __name__ == "__main__":
    raise SystemExit(main())
