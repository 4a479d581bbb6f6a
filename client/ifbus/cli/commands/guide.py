"""`ifbus guide`: what an agent reads first. The commands are the real ones, the first line is the swarm's own state."""

from __future__ import annotations

from ifbus.cli import exits, load
from ifbus.cli.command import Command, Data, Invocation, Outcome
from ifbus.cli.reference import short_usage
from ifbus.cli.text import View, plural
from ifbus.errors import NoDaemon, NotFound, PermissionDenied

# What a worker needs, in the order in which it needs it, and why.
_STEPS = (
    (("task", "next"), "get work; --wait 10m waits for it"),
    (("task", "show"), "read all of it"),
    (("task", "progress"), "say how far; renews the lease"),
    (("task", "complete"), "done"),
    (("task", "fail"), "cannot be done"),
    (("task", "release"), "give it back"),
    (("task", "blocked"), "ask for help"),
    (("inbox", "ls"), "your letters; ifbus inbox ack SEQ"),
    (("task", "add"), "more work for others"),
    (("why",), "why a claim is refused"),
)
# Columns for a command's form; one with more options says so.
_LONGEST = 52
_EXITS = (exits.REFUSED, exits.LOST, exits.NOT_YET, exits.NO_DAEMON, exits.THE_MOMENT)


def _guide(invocation: Invocation) -> Outcome:
    return Outcome({"you": _state(invocation)})


def _state(invocation: Invocation) -> Data:
    """Who the caller is and how it stands; an unknown swarm or an absent daemon is part of the answer, not an error."""
    swarm_id = invocation.swarm
    state: Data = {
        "swarm_id": swarm_id,
        "registered": False,
        "holds": [],
        "free_usd": None,
        "letters": 0,
        "daemon": True,
    }
    try:
        if swarm_id is None:
            invocation.ask("daemon.ping")
            return state
        profile = invocation.ask("governor.get_swarm", swarm_id=swarm_id)["profile"]
        held = invocation.ask("coordinator.list_tasks", holder=swarm_id, states=["claimed"])["tasks"]
        letters = invocation.ask("coordinator.read_inbox", swarm_id=swarm_id, limit=200)["messages"]
    except (NotFound, PermissionDenied):
        return state
    except NoDaemon as error:
        return {**state, "daemon": False, "cause": error.code}
    return {
        **state,
        "registered": True,
        "holds": [f"{task['task_id']}@{task['token']}" for task in held],
        "free_usd": profile.get("free_usd"),
        "letters": len(letters),
    }


def render_guide(data: Data, _view: View) -> list[str]:
    """The state, the commands, the rules; at most 2 KiB."""
    usages = [(short_usage(load(words), longest=_LONGEST), why) for words, why in _STEPS]
    width = max(len(usage) for usage, _ in usages)
    return [
        _opening(data["you"]),
        "",
        *(f"{usage:<{width}}  {why}" for usage, why in usages),
        "",
        "HANDLE is the first word of a claim's answer, such as T-7@41: acting as the holder takes it, reading takes T-7.",
        "A refusal says what would change it. Lines that begin with ! are for you. --json: one line, same facts.",
        "After a timeout: the same command with the same --key. All commands: ifbus help; an error: ifbus help CODE.",
        "Exit: 0 done; " + "; ".join(f"{code} {exits.MEANING[code]}" for code in _EXITS) + ".",
    ]


def _opening(you: Data) -> str:
    name = you["swarm_id"]
    if not you["daemon"]:
        return f"no daemon answers ({you['cause']}): ifbus status says what to do"
    if name is None:
        return (
            "you have no name here: ifbus run --swarm NAME -- COMMAND gives you one, or --swarm NAME with each command"
        )
    if not you["registered"]:
        return f"you are {name}, which nobody registered: ifbus swarm register {name} --can area:skill"
    holds = f"you hold {', '.join(you['holds'][:5])}" if you["holds"] else "you hold nothing"
    if len(you["holds"]) > 5:
        holds += f" and {len(you['holds']) - 5} more (ifbus task ls --holder {name})"
    money = f"{you['free_usd']} USD left" if you["free_usd"] is not None else "no budget set"
    return f"you are {name}, {holds}, {money}, {plural(you['letters'], 'letter')}"


COMMANDS = {
    "": Command(
        words="guide",
        summary="What an agent reads first: who it is here and what to type",
        examples=("ifbus guide", "ifbus guide --swarm builder", "ifbus guide --json"),
        run=_guide,
        render=render_guide,
        acts=True,
    ),
}
