"""Help texts: the purpose of every command and an example, as `--help` tells them.

It is one file because all of them are read side by side. `describe` puts them into the parsers;
the benches, which have parsers of their own, say theirs themselves.
"""

from __future__ import annotations

import argparse
import textwrap

_WIDTH = 79
_SETTINGS = (
    "An option that is not given comes from its TOKENBUS_* variable, then from the file of"
    " --config; `tokenbus config show` prints what holds."
)

# By the words behind `tokenbus`: what it is for, the purpose in the first sentence; and an example.
_TEXTS: dict[str, tuple[str, str]] = {
    "": (
        "Answer prompts of an LLM through a Redis queue. Programs queue jobs, workers with a GPU or"
        " CPU take as many as their memory has room for, and every answer streams back while it is"
        " generated. Settings come from options, TOKENBUS_* variables and a file, in this order."
        " Exit codes: 0 done, 1 the work failed, 2 wrong input, 130 Ctrl-C.",
        "tokenbus serve smollm2-135m",
    ),
    "demo": (
        "Answer two dozen questions of a shop at once with a real model, and show it live. Then the"
        " same questions one at a time with the library transformers, for comparison: the first run"
        " is called the bus, the second the taxi. Fetches the model (80 MB) on its first start.",
        "tokenbus demo --jobs 12 --skip-taxi",
    ),
    "worker": (
        "Run a worker, which takes jobs from the queue as its memory allows and streams their"
        " answers. It goes on until Ctrl-C or SIGTERM and lets running answers end first."
        f" {_SETTINGS}",
        "tokenbus worker --model smollm2-135m --redis redis://127.0.0.1:6379/0",
    ),
    "serve": (
        "Serve a model over OpenAI's HTTP API on this machine. Starts a server for the queue, a"
        " worker and a gateway, starts again what dies, and ends all of them at Ctrl-C."
        f" {_SETTINGS}",
        "tokenbus serve smollm2-135m --port 8000",
    ),
    "chat": (
        "Talk with a model in the terminal. Ctrl-C stops an answer, /reset begins anew, /exit ends"
        " the talk.",
        "tokenbus chat smollm2-135m",
    ),
    "submit": (
        "Queue one prompt and print its answer while it is generated. Ctrl-C cancels the job; one"
        " whose command was killed goes on: `tokenbus list` tells its id, and `tokenbus follow ID`"
        " reads it.",
        'tokenbus submit "Do these boots run small?" --max-tokens 64',
    ),
    "status": (
        "Print what waits in a pool and which workers live. The exit code is 1 where none does.",
        "tokenbus status --watch 5",
    ),
    "top": (
        "Watch a pool in the terminal: its figures, workers and queue, until q or Ctrl-C.",
        "tokenbus top --interval-s 2",
    ),
    "dashboard": (
        f"Serve the dashboard of the pools for a browser, at /ui/, without the API. {_SETTINGS}",
        "tokenbus dashboard --port 8090",
    ),
    "doctor": (
        "Check settings, server, machine and model, and say what to do about each fault. The exit"
        " code is 1 where a check failed.",
        "tokenbus doctor smollm2-135m --redis redis://127.0.0.1:6379/0",
    ),
    "config": (
        "Print the settings of a process and where each value comes from. Secrets are not shown.",
        "tokenbus config show gateway --changed",
    ),
    "size": (
        "Compute what a model takes of a GPU, how many jobs fit, and how many workers a load needs."
        " Every line has its formula; no weights are read and no GPU is asked.",
        "tokenbus size --weights-gib 15 --layers 32 --kv-heads 8 --head-dim 128 --gpu-gib 80",
    ),
    "list": (
        "List the jobs of a pool that have not ended.",
        "tokenbus list --state waiting --limit 20",
    ),
    "show": ("Print all that the server knows of a job.", "tokenbus show ID"),
    "result": (
        "Wait for the end of jobs and print their answers.",
        "tokenbus result ID --timeout-s 60",
    ),
    "follow": (
        "Stream the answer of a job from any token on: what is there at once, then the rest.",
        "tokenbus follow ID --from 120",
    ),
    "cancel": (
        "Cancel a job, wherever it is. Its readers are told; what it generated can still be read.",
        "tokenbus cancel ID",
    ),
    "pause": (
        "Let the workers of a pool take no more jobs. Running ones go on, and new ones are accepted"
        " and wait, until `tokenbus resume`.",
        "tokenbus pause --pool default",
    ),
    "resume": (
        "Let the workers of a paused pool take jobs again.",
        "tokenbus resume --pool default",
    ),
    "dead": (
        "Look at dead letters: jobs that failed for good, and entries that could not be read.",
        "tokenbus dead list",
    ),
    "dead list": ("Print a line per dead letter, newest first.", "tokenbus dead list --limit 10"),
    "dead show": ("Print dead letters with their requests and reasons.", "tokenbus dead show ID"),
    "dead retry": (
        "Send dead letters again. Each becomes a job with an id of its own, and is no dead letter"
        " any more.",
        "tokenbus dead retry --all",
    ),
    "dead purge": (
        "Delete dead letters. Nothing brings them back.",
        "tokenbus dead purge --all --tenant acme",
    ),
    "control": (
        "Run what a pool needs beside its workers: crons, webhooks, batches and its figures. Any"
        f" number may run at once; each piece of work is done by one of them. {_SETTINGS}",
        "tokenbus control --redis redis://127.0.0.1:6379/0 --crons crons.toml",
    ),
    "gateway": (
        "Serve OpenAI's HTTP API in front of the pools of a server. It keeps nothing that another"
        f" gateway would need, so any number may run. {_SETTINGS}",
        "tokenbus gateway --redis redis://127.0.0.1:6379/0 --port 8000",
    ),
    "keys": (
        "Make, list and revoke API keys of gateways.",
        "tokenbus keys create --tenant shop",
    ),
    "keys create": (
        "Make an API key and print it, this once: what is kept is a digest of it.",
        "tokenbus keys create --tenant shop --weight 2 --tokens-per-month 50000000",
    ),
    "keys list": ("Print a line per API key, without the key itself.", "tokenbus keys list"),
    "keys revoke": (
        "Refuse an API key from now on and cancel its jobs.",
        "tokenbus keys revoke ID",
    ),
    "model": ("Fetch models.", "tokenbus model pull smollm2-135m"),
    "model pull": (
        "Fetch a model into the cache folder, ahead of its first start, and print where it lies.",
        "tokenbus model pull smollm2-135m",
    ),
    "bench": (
        "Measure the engine, the queue or the gateway under a load that the command makes itself.",
        "tokenbus bench pool --users 64 --tokens-per-s 50 --duration-s 30",
    ),
}


def describe(parser: argparse.ArgumentParser) -> None:
    """Give a parser and those of its sub-commands their purpose and example."""
    _, _, words = parser.prog.partition(" ")
    if parser.add_help:
        purpose, example = _TEXTS[words]
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.description = textwrap.fill(purpose, _WIDTH)
        parser.epilog = f"example:\n  {example}"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                describe(child)
