"""Which commands there are, and what somebody probably meant who typed something else. Pure; holds no command's code."""

from __future__ import annotations

from typing import Final

from ifbus.errors import Usage

# Noun -> its verbs, in the order of the help. A noun without verbs is a command by itself. Each noun is a module in
# `ifbus.cli.commands`, imported only when it is typed.
NOUNS: Final[dict[str, tuple[str, ...]]] = {
    "status": (),
    "task": (
        "add",
        "ls",
        "show",
        "next",
        "claim",
        "progress",
        "complete",
        "fail",
        "release",
        "blocked",
        "unblock",
        "import",
        "batch",
        "cancel",
        "dead",
        "requeue",
    ),
    "swarm": ("ls", "show", "status", "register", "drain", "request-help"),
    "drain": (),
    "group": ("ls", "weight"),
    "pause": (),
    "resume": (),
    "inbox": ("ls", "ack", "ask", "reply", "send", "topics"),
    "lock": ("ls", "acquire", "release"),
    "budget": ("show", "set"),
    "breaker": ("ls", "show", "reset", "trip"),
    "witness": ("query", "verify"),
    "cost": ("report",),
    "tool": ("build",),
    "waits": (),
    "approvals": ("ls", "approve", "reject"),
    "run": (),
    "why": (),
    "guide": (),
    "rpc": (),
    "help": (),
    "completion": (),
    "demo": (),
}
# Commands whose code is in another module than their noun's.
_MODULES: Final[dict[tuple[str, ...], str]] = {
    **dict.fromkeys((("task", verb) for verb in ("next", "claim")), "task_claim"),
    **dict.fromkeys(
        (("task", verb) for verb in ("progress", "complete", "fail", "release", "blocked", "unblock")), "task_holder"
    ),
    **dict.fromkeys((("task", verb) for verb in ("batch", "cancel", "dead", "requeue")), "task_life"),
    ("__complete",): "complete",
}
# Not for people: completion scripts call it at every TAB.
COMPLETE: Final = "__complete"

# A noun alone means its first question.
_DEFAULT_VERB: Final = {
    "task": "ls", "swarm": "ls", "inbox": "ls", "lock": "ls", "approvals": "ls", "budget": "show", "breaker": "ls", "witness": "query", "cost": "report",
    "group": "ls",
}  # fmt: skip

# What callers type without having read anything; it works and is not listed (UX 2).
_SYNONYMS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "task": {
        "list": ("ls",), "get": ("show",), "create": ("add",), "new": ("add",), "done": ("complete",),
        "finish": ("complete",), "close": ("complete",), "ready": ("ls", "--state", "ready"),
    },
    "swarm": {"list": ("ls",), "get": ("show",), "create": ("register",), "add": ("register",), "help": ("request-help",)},
    "group": {"list": ("ls",), "set": ("weight",), "show": ("ls",)},
    "inbox": {
        "list": ("ls",), "get": ("ls",), "show": ("ls",), "read": ("ls",), "done": ("ack",),
        "broadcast": ("send",), "publish": ("send",), "tell": ("send",), "topic": ("topics",),
        "subscribe": ("topics", "--subscribe"), "unsubscribe": ("topics", "--unsubscribe"),
    },
    "lock": {"list": ("ls",), "get": ("ls",), "show": ("ls",), "add": ("acquire",), "take": ("acquire",), "free": ("release",)},
    "budget": {"list": ("show",), "ls": ("show",), "get": ("show",), "report": ("show",)},
    "breaker": {"list": ("ls",), "get": ("show",), "close": ("reset",), "open": ("trip",)},
    "witness": {"list": ("query",), "ls": ("query",), "get": ("query",), "log": ("query",), "check": ("verify",)},
    "cost": {"list": ("report",), "ls": ("report",), "show": ("report",), "get": ("report",)},
    "tool": {"create": ("build",), "add": ("build",)},
}  # fmt: skip
_NOUN_SYNONYMS: Final = {
    "tasks": "task", "swarms": "swarm", "mail": "inbox", "budgets": "budget", "approval": "approvals", "locks": "lock", "resource": "lock", "resources": "lock", "breakers": "breaker", "costs": "cost",
    "tools": "tool", "log": "witness", "groups": "group", "queue": "group", "unpause": "resume", "hold": "pause",
}  # fmt: skip

# Same thing, other word: too far off for spelling, so the answer names the right one instead of doing it.
_MEANS: Final = {
    "deliver": "complete", "submit": "complete", "resolve": "unblock", "end": "complete", "take": "claim",
    "start": "claim", "grab": "claim", "lock": "claim", "assign": "claim", "unclaim": "release", "drop": "release",
    "unlock": "release", "stop": "release", "abort": "fail", "update": "progress",
    "report": "progress", "block": "blocked", "pop": "next", "poll": "next", "load": "import", "find": "ls",
    "search": "ls", "info": "show", "view": "show", "join": "register", "kill": "trip", "raise": "set",
}  # fmt: skip

_EXAMPLE_ARGUMENTS: Final = {
    ("task", "add"): '"Count the words"', ("task", "show"): "T-7", ("task", "claim"): "T-7",
    ("task", "progress"): 'T-7@41 50 "half"', ("task", "complete"): "T-7@41", ("task", "fail"): 'T-7@41 "why"',
    ("task", "release"): "T-7@41", ("task", "blocked"): 'T-7@41 "why"', ("task", "unblock"): 'T-7 --note "port 8080"', ("task", "import"): "board.md",
    ("task", "batch"): "tasks.json", ("task", "cancel"): "T-7", ("task", "requeue"): "T-7",
    ("swarm", "show"): "docs-2", ("swarm", "status"): "docs-2", ("swarm", "register"): "docs-2 --can docs:writing", ("inbox", "ack"): "12", ("inbox", "ask"): 'docs-2 "where is it?"', ("inbox", "reply"): "Q-1 --text here",
    ("approvals", "approve"): "A-1", ("approvals", "reject"): "A-1",
    ("lock", "acquire"): "gpu:0 --swarm docs-2", ("lock", "release"): "gpu:0@41 --swarm docs-2",
    ("swarm", "drain"): 'docs-2 --reason "upgrade"', ("drain",): '--grace 10m --reason "reboot"',
    ("group", "weight"): "nightly 3", ("pause",): 'task T-7 --reason "wait for the release"', ("resume",): "task T-7",
    ("inbox", "send"): 'builds "main is green"', ("inbox", "topics"): "--subscribe builds",
    ("budget", "set"): "docs-2 5.00", ("breaker", "show"): "docs-2",
    ("breaker", "reset"): 'docs-2 --reason "looked at it"', ("breaker", "trip"): 'docs-2 --reason "too dear"',
    ("tool", "build"): "my_tool.py", ("run",): "--swarm me -- bash", ("why",): "T-12 --swarm builder",
    ("rpc",): "daemon.describe", ("help",): "already_claimed", ("completion",): "bash",
}  # fmt: skip


def module_of(command: tuple[str, ...]) -> str:
    """The module in `ifbus.cli.commands` that has this command."""
    return _MODULES.get(command, command[0])


def resolve(words: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The command that these words begin with, and the words that are left for it.

    Raises:
        Usage: They begin with none; the message has the nearest valid form and one example.
    """
    if not words:
        return ("help",), []
    noun, rest = _NOUN_SYNONYMS.get(words[0], words[0]), words[1:]
    if noun == COMPLETE:
        return (COMPLETE,), rest
    verbs = NOUNS.get(noun)
    if verbs is None:
        raise _unknown_noun(words)
    if not verbs:
        return (noun,), rest
    if rest and rest[0] in ("-h", "--help"):
        return ("help",), [noun]
    if not rest or rest[0].startswith("-"):
        if noun not in _DEFAULT_VERB:
            raise _usage(f"`{noun}` needs a verb", (noun, verbs[0]))
        return (noun, _DEFAULT_VERB[noun]), rest
    verb, rest = rest[0], rest[1:]
    if verb in verbs:
        return (noun, verb), rest
    if guess := _SYNONYMS.get(noun, {}).get(verb):
        return (noun, guess[0]), [*guess[1:], *rest]
    raise _unknown_verb(noun, verb)


def example(command: tuple[str, ...]) -> str:
    """One line that somebody could type for this command."""
    return " ".join(("ifbus", *command, _EXAMPLE_ARGUMENTS.get(command, ""))).strip()


def nearest(word: str, words: list[str]) -> str | None:
    """The word that was probably meant, if any is close."""
    import difflib

    found = difflib.get_close_matches(word[:64].lower(), words, n=1, cutoff=0.6)
    return found[0] if found else None


def nearest_option(flag: str, options: list[str]) -> str | None:
    """The long option that was probably meant: close without the dashes, which all have in common."""
    import difflib

    names = [option.removeprefix("--") for option in options if option.startswith("--")]
    found = difflib.get_close_matches(flag.removeprefix("--")[:64].lower(), names, n=1, cutoff=0.7)
    return f"--{found[0]}" if found else None


def _unknown_noun(words: list[str]) -> Usage:
    word = words[0]
    meant = _MEANS.get(word, word)
    for noun, known in NOUNS.items():
        # Somebody typed the verb alone: `ifbus claim T-7`.
        if meant in known or meant in _SYNONYMS.get(noun, {}):
            verb = meant if meant in known else _SYNONYMS[noun][meant][0]
            return _usage(f"no `{word}`: verbs follow their noun", (noun, verb))
    close = nearest(word, list(NOUNS))
    if close:
        verbs = NOUNS[close]
        return _usage(f"no `{word}`", (close, _DEFAULT_VERB.get(close, verbs[0])) if verbs else (close,))
    return Usage(f"no `{word:.64}`; commands: {' '.join(NOUNS)}", data={"example": "ifbus guide", "command": "help"})


def _unknown_verb(noun: str, verb: str) -> Usage:
    verbs = NOUNS[noun]
    if any(char.isdigit() for char in verb) and "show" in verbs:
        # Somebody typed an id where the verb belongs: `ifbus task T-7`.
        return Usage(
            f"no `{noun} {verb:.64}`; nearest: `ifbus {noun} show`",
            data={"example": f"ifbus {noun} show {verb:.64}", "command": f"{noun} show"},
        )
    meant = _MEANS.get(verb, verb)
    synonyms = _SYNONYMS.get(noun, {})
    close = meant if meant in verbs else nearest(meant, [*verbs, *synonyms])
    if close is None:
        return Usage(
            f"no `{noun} {verb:.64}`; verbs of {noun}: {' '.join(verbs)}",
            data={"example": example((noun, verbs[0])), "command": f"{noun} {verbs[0]}"},
        )
    return _usage(f"no `{noun} {verb:.64}`", (noun, close if close in verbs else synonyms[close][0]))


def _usage(problem: str, command: tuple[str, ...]) -> Usage:
    words = " ".join(command)
    return Usage(f"{problem}; nearest: `ifbus {words}`", data={"example": example(command), "command": words})
