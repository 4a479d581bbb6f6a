"""The play: starts the daemon, the orchestrator and the swarms as processes of their own, is the operator, and ends them all."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from ifbus import board, testing
from ifbus.demo import screen
from ifbus.demo.cast import CAST, ESTIMATE_USD_PER_HOUR
from ifbus.demo.tally import Tally
from ifbus.money import to_micro_usd, to_usd
from ifbus.sync import Client

BOARD: Final = Path(__file__).with_name("phase0-board.md")
TOOL: Final = Path(__file__).with_name("wordcount_tool.py")
# A generalist's skills beyond a task must not count against it in this play, so the policy looks at coverage (DESIGN 8).
CONFIG: Final = '[governor]\nsimilarity = "coverage"\n'
# Far beyond what the play takes; then something hangs, and it says what did not happen.
PATIENCE_S: Final = 60.0
# A person reads before resetting a breaker; meanwhile somebody else takes the task that came free.
PERSON_S: Final = 1.5
_REFRESH_S: Final = 0.15
_END_S: Final = 5.0
SCENES: Final = (
    "a task was pushed",
    "a blocker was reported",
    "the orchestrator heard of the blocker",
    "a helper resolved the blocker",
    "a swarm ran out of budget and its breaker tripped",
    "an operator reset the breaker and the swarm went on",
)


def play(*, is_full: bool, tool: str | None) -> int:
    """Play from beginning to end; 0 if every scene came off and the record is intact."""
    console = Console(highlight=False)
    started_s = time.monotonic()
    tally = Tally()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ifbus-demo-")))
        config = directory / "ifbusd.toml"
        config.write_text(CONFIG)
        daemon = stack.enter_context(testing.daemon(config=config))
        console.print(f"ifbusd answers at {daemon.socket} (pid {daemon.pid}); importing {BOARD.name}", soft_wrap=True)
        operator = stack.enter_context(Client(str(daemon.socket)))
        tasks = _import_board(operator)
        reports: queue.Queue[dict[str, Any]] = queue.Queue()
        environment = {**os.environ, "IFBUS_SOCKET": str(daemon.socket)}
        environment["IFBUS_DEMO_TOOL"] = str(directory / "tool.wasm") if is_full else ""
        # Who is to hear of a blocker, and who can help, is there before the one that meets it.
        stack.enter_context(_process("orchestrator", [], environment, reports))
        helpers = [part for part in CAST if not part.blocked_on]
        for part in helpers:
            stack.enter_context(_process("swarm", [part.name], environment, reports))
        _wait_until_ready(1 + len(helpers), reports, tally)
        for part in CAST:
            if part.blocked_on:
                stack.enter_context(_process("swarm", [part.name], environment, reports))
        if is_full:
            stack.enter_context(_tool(tool, directory / "tool.wasm", environment, reports))
        stack.enter_context(_operator(operator, environment, reports))
        picture = stack.enter_context(screen.Screen(console))
        is_done = _watch(operator, tasks, tally, reports, picture)
        seconds = time.monotonic() - started_s
        operator.broadcast("curtain", {})
        verdict = operator.witness_verify()
        status = operator.status()
        spent = {report.swarm_id: format(report.spent_usd, "f") for report in operator.get_budget_report()}
        left = _still_to_come(tally) if is_done else [*_still_to_come(tally), f"{tasks} completed tasks"]
    screen.closing(console, tally, spent_usd=spent, daemon_latency=status["latency"], seconds=seconds)
    total = sum((Decimal(amount) for amount in spent.values()), Decimal(0))
    console.print(f"spent {total} USD in all, breaker resets and refusals are on record")
    console.print(f"witness verify: {'ok' if verdict.ok else 'FAILED'}    {verdict.entries} entries")
    for problem in [*tally.problems, *(f"did not happen: {scene}" for scene in left)]:
        console.print(f"! {problem}", style="red")
    if verdict.ok and not left and not tally.problems:
        console.print(_NEXT)
        return 0
    return 1


_NEXT: Final = """
nothing is left running; now with a daemon of your own (ifbusd --dev):
  ifbus task add "hello"      ifbus run --swarm me -- bash      ifbus task ls      ifbus guide      ifbus status"""


def _import_board(operator: Client) -> int:
    specs = board.parse(BOARD.read_text())
    per_hour = to_micro_usd(ESTIMATE_USD_PER_HOUR)
    for spec in specs:
        estimate = to_usd(per_hour * (spec.estimate_minutes or 60) // 60)
        operator.create_task(**spec.to_params(), estimate_usd=estimate)
    return len(specs)


def _watch(
    operator: Client, tasks: int, tally: Tally, reports: queue.Queue[dict[str, Any]], picture: screen.Screen
) -> bool:
    """Follow the board until all is done and every scene came off; False when the patience is over."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        _collect(reports, tally)
        page = operator.list_tasks(limit=200)
        picture.show(page.tasks, page.counts, tally)
        if page.counts.get("completed", 0) == tasks and not _still_to_come(tally):
            return True
        if tally.problems:
            return False
    return False


def _wait_until_ready(number: int, reports: queue.Queue[dict[str, Any]], tally: Tally) -> None:
    """Return when so many processes have registered, or one could not, which the tally tells at the end."""
    deadline_s = time.monotonic() + PATIENCE_S
    while number and not tally.problems:
        try:
            report = reports.get(timeout=max(0.0, deadline_s - time.monotonic()))
        except queue.Empty:
            report = {"event": "problem", "swarm": "play", "text": f"{number} processes did not get ready"}
        tally.add(report)
        number -= report["event"] == "ready"


def _collect(reports: queue.Queue[dict[str, Any]], tally: Tally) -> None:
    """Take in what was reported: waits for the first for one frame, then takes all that is there."""
    try:
        tally.add(reports.get(timeout=_REFRESH_S))
        while True:
            tally.add(reports.get_nowait())
    except queue.Empty:
        return


def _still_to_come(tally: Tally) -> list[str]:
    return [scene for scene in SCENES if scene not in tally.scenes]


@contextmanager
def _process(
    module: str, arguments: list[str], environment: dict[str, str], reports: queue.Queue[dict[str, Any]]
) -> Iterator[None]:
    """A process of the play; what it prints goes to `reports`. At the end it leaves by itself, or is made to."""
    name = arguments[0] if arguments else module
    with _child([sys.executable, "-m", f"ifbus.demo.{module}", *arguments], environment) as process:
        reader = threading.Thread(target=_read, args=(name, process, reports), name=f"reads {name}")
        reader.start()
        try:
            yield
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)  # the curtain was called
        finally:
            _kill(process)
            reader.join()


@contextmanager
def _child(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A child in a session of its own, so that Ctrl-C reaches only us and we end the others in order."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _kill(process)
        process.wait()


def _kill(process: subprocess.Popen[str]) -> None:
    """End a child and what it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _read(name: str, process: subprocess.Popen[str], reports: queue.Queue[dict[str, Any]]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            try:
                report = json.loads(line)
            except ValueError:
                report = {"event": "problem", "text": line.strip()}
            reports.put({"swarm": name, **report})
    if process.wait() != 0:
        reports.put({"event": "problem", "swarm": name, "text": f"ended with status {process.returncode}"})


@contextmanager
def _tool(
    built: str | None, target: Path, environment: dict[str, str], reports: queue.Queue[dict[str, Any]]
) -> Iterator[None]:
    """Build the Python tool beside everything else; the swarms that want it wait for the file to appear."""
    part = target.with_suffix(".part")
    command = [sys.executable, "-m", "ifbus.cli", "tool", "build", str(TOOL), "-o", str(part)]
    if built is not None:
        command = ["cp", built, str(part)]
    started_s = time.monotonic()
    with _child(command, environment) as process:

        def wait() -> None:
            said, _ = process.communicate()
            if process.returncode == 0:
                part.rename(target)
                text = f"built {TOOL.name} into a WebAssembly component in {time.monotonic() - started_s:.1f} s"
                reports.put({"event": "built", "swarm": "tool", "text": text})
            elif process.returncode > 0:  # below 0 it was we who ended it
                reports.put({"event": "problem", "swarm": "tool", "text": said.strip() or "the tool was not built"})

        waiter = threading.Thread(target=wait, name="builds the tool")
        waiter.start()
        try:
            yield
        finally:
            _kill(process)
            waiter.join()


@contextmanager
def _operator(operator: Client, environment: dict[str, str], reports: queue.Queue[dict[str, Any]]) -> Iterator[None]:
    """The person on duty: hears every escalation, and resets scout's breaker with the command that people use."""
    subscription = operator.subscribe_escalations()

    def listen() -> None:
        for escalation in subscription:
            text = f"{escalation['kind']}: {escalation.get('swarm_id', '')} {escalation.get('reason', '')}"
            reports.put({"event": "escalation", "swarm": "operator", "text": text})
            if escalation["kind"] == "breaker_tripped":
                time.sleep(PERSON_S)
                command = ["breaker", "reset", escalation["swarm_id"], "--reason", "demo: budget raised by a person"]
                done = subprocess.run(
                    [sys.executable, "-m", "ifbus.cli", *command, "--budget-usd", "5.00"],
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=10,
                )
                said = (done.stdout or done.stderr).splitlines() or ["said nothing"]
                event = "reset" if done.returncode == 0 else "problem"
                reports.put({"event": event, "swarm": "operator", "text": said[0]})

    thread = threading.Thread(target=listen, name="operator")
    thread.start()
    try:
        yield
    finally:
        subscription.close()
        thread.join()
