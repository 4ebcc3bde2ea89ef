"""`duologue export`: writes a model with the adapter in it, for engines that know nothing of adapters."""

import argparse
import dataclasses
import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duologue.cli.command import Command, Option
from duologue.cli.options import MODEL_NAME
from duologue.cli.progress import progress
from duologue.errors import MissingDependency, UsageError
from duologue.models.catalogue import find

if TYPE_CHECKING:
    from duologue.export.inspection import ExportReport
    from duologue.models.adapters import Adapter


COMMAND = Command(
    "write a model that includes the adapter, for llama.cpp or vLLM",
    "Write a GGUF file or a Hugging Face folder with the adapter's rows in the vocabulary. The output "
    "of the base model does not change, and the added tokens are never sampled in ordinary text; both are checked. "
    "The LoRA of an alora adapter is written to a separate GGUF file or PEFT folder, active from the probe on, or with "
    "--one-pass to the GGUF file itself. --format vllm writes a folder for vLLM with this package's plug-in, which "
    "applies the LoRA at the probe in the pass of the other tokens.",
    options=(
        *MODEL_NAME,
        Option(
            "--adapter",
            default="auto",
            metavar="NAME",
            help="an adapter folder; alora or rows: the one shipped for the model; auto (default): the best "
            "shipped one",
        ),
        Option("--format", required=True, choices=("gguf", "hf", "vllm")),
        Option(
            "--weights",
            metavar="TYPE",
            help="gguf: BF16, F16, Q8_0, Q4_0 (default: unchanged); hf and vllm: bf16 (default), f16, f32",
        ),
        Option("--out", type=Path, required=True, metavar="PATH", help="the file or folder to write"),
        Option(
            "--one-pass",
            action="store_true",
            help="gguf: a file that applies the LoRA itself, so that decisions take no second pass (models like Llama)",
        ),
        Option("--force", action="store_true", help="overwrite an existing file or folder"),
        Option(
            "--tokens",
            type=int,
            default=2000,
            metavar="N",
            help="tokens of text for the computation and the check, gguf and hf (default 2000)",
        ),
        Option("--threads", type=int, default=1, metavar="N", help="CPU threads of the check (gguf only)"),
        Option("--json", action="store_true", help="print one JSON object"),
    ),
)


def run(args: argparse.Namespace) -> int:
    """Export, check and report."""
    where = find(args.model, args.revision).location
    if args.one_pass and args.format != "gguf":
        raise UsageError(
            f"--one-pass puts a LoRA into a GGUF file, and does not go with --format {args.format}; leave it out"
        )
    adapter = _adapter(args)
    try:
        if args.format == "vllm":
            print(_for_vllm(args, adapter, where))
        else:
            report = _with_lora(args, adapter, where)
            print(json.dumps(_as_json(report)) if args.json else _as_text(report))
    except ImportError as error:
        extra = "llamacpp" if args.format == "gguf" else "torch"
        raise MissingDependency(f'exporting needs {error.name}: pip install "duologue[{extra}]"') from error
    return 0


def _adapter(args: argparse.Namespace) -> "Adapter":
    from duologue.models.adapters import PROMPTED, TRAINED, Adapter
    from duologue.models.model import NO_LISTENER, load

    if args.adapter in ("auto", *TRAINED, *PROMPTED):
        found = load(args.model, adapter=args.adapter, listener=NO_LISTENER, revision=args.revision)  # its own adapter
        with closing(found) as model:
            adapter = model.adapter
    else:
        adapter = Adapter.load(Path(args.adapter).expanduser())
    if adapter.rows is None:
        raise UsageError(
            "there is no trained adapter for this model, so there is nothing to export; train one with "
            "`duologue train` and pass its folder with --adapter"
        )
    return adapter


def _with_lora(args: argparse.Namespace, adapter: "Adapter", where: Path | str) -> "ExportReport":
    if args.one_pass and adapter.lora is None:
        raise UsageError(
            f"--one-pass puts a LoRA into a GGUF file, and does not go with an adapter of kind {adapter.kind}, which "
            "has no LoRA; leave it out"
        )
    if adapter.lora is None or args.one_pass:
        return _write(args, where, adapter)
    from duologue.export.inspection import check_out

    suffix = ".gguf" if args.format == "gguf" else ""
    path = args.out.with_name(f"{args.out.name.removesuffix(suffix)}-lora{suffix}")
    check_out(path, force=args.force)
    report = _write(args, where, adapter)
    assert adapter.rows is not None
    probe = tuple(report.added.values())[: adapter.rows.num_probes]
    if args.format == "hf":
        from duologue.export.huggingface import export_peft

        export_peft(adapter.lora, args.out, path, probe)
    else:
        from duologue.backends.llamacpp.gguf_lora import write_lora

        write_lora(args.out, adapter.lora, path, invocation=probe)
    return dataclasses.replace(report, lora=path)


def _write(args: argparse.Namespace, where: Path | str, adapter: "Adapter") -> "ExportReport":
    assert adapter.rows is not None
    options: dict[str, Any] = {"states": adapter.states, "num_tokens": args.tokens, "force": args.force}
    if args.format == "hf":
        from duologue.export.huggingface import export_hf

        return export_hf(where, adapter.rows, args.out, revision=args.revision, dtype=_dtype(args), **options)
    if not isinstance(where, Path) or where.suffix != ".gguf":
        raise UsageError(f"{where} is not a GGUF file; convert it first, or use --format hf")
    from duologue.export.gguf import export_gguf

    weights = args.weights.upper() if args.weights else None
    with progress("Exporting") as stage:
        return export_gguf(
            where,
            adapter.rows,
            args.out,
            weights=weights,
            threads=args.threads,
            one_pass=adapter.lora if args.one_pass else None,
            progress=stage,
            **options,
        )


def _for_vllm(args: argparse.Namespace, adapter: "Adapter", where: Path | str) -> str:
    """Write the folder; what to print."""
    from duologue.export.vllm import export_vllm

    folder = export_vllm(where, adapter, args.out, revision=args.revision, dtype=_dtype(args), force=args.force)
    exported = folder.adapter
    if args.json:
        shown = {**dataclasses.asdict(folder), "path": str(folder.path)}
        return json.dumps(shown)
    added = ", ".join(f"{name} {token}" for name, token in folder.added.items())
    probe = ", ".join(map(str, range(exported.first_added, exported.first_output)))
    read = [*exported.states.values(), *exported.timing]
    return (
        f"{folder.path}: {folder.vocab_size} ids; {added}\n"
        f"Checked: probabilities within {folder.decision_error:.4f} of the adapter's\n"
        f"Start it, with duologue and vllm in one environment:\n  vllm serve {folder.path}\n"
        "Ask it for a state: POST /v1/completions with the ids of the conversation and the probe,\n"
        f'  {{"prompt": [..., {probe}], "max_tokens": 1, "temperature": 0, "logprobs": 1,\n'
        f'   "logprob_token_ids": {read}, "return_tokens_as_token_ids": true}}'
    )


def _dtype(args: argparse.Namespace) -> str:
    """The type of the weights in a Hugging Face folder, as PyTorch calls it."""
    dtypes = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
    weights = (args.weights or "bf16").lower()
    if weights not in dtypes:
        raise UsageError(
            f"--weights {args.weights} is not available for a Hugging Face folder; choose {', '.join(dtypes)}"
        )
    return dtypes[weights]


def _as_json(report: "ExportReport") -> dict[str, Any]:
    return {
        "path": str(report.path),
        "vocab_size": report.vocab_size,
        "added": report.added,
        "is_untied": report.is_untied,
        "num_tokens": report.leads.num_tokens,
        "num_won": report.leads.num_won,
        "smallest_lead": report.leads.smallest,
        "decision_error": report.decision_error,
        "lora": None if report.lora is None else str(report.lora),
    }


def _as_text(report: "ExportReport") -> str:
    added = ", ".join(f"{name} {token}" for name, token in report.added.items())
    untied = "\nThe output matrix was separated from the embeddings: the probe's row would have won." * report.is_untied
    lora = f"\n{report.lora}: the LoRA, active from the probe on" if report.lora else ""
    lora += "\nIt applies the LoRA itself, from the probe on." * report.is_one_pass
    return (
        f"{report.path}: {report.vocab_size} ids; {added}{untied}{lora}\n"
        f"Checked: {report.num_same} greedy tokens as the base; probabilities of states within "
        f"{report.decision_error:.4f} of the adapter's;\nno added token wins on {report.leads.num_tokens} tokens of "
        f"text (smallest lead {report.leads.smallest:.1f} logits)"
    )
