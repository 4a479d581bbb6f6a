"""A task in a holder's hands, written once for both clients: what may still be done, and how it ends.

Methods named ``*_steps`` are conversations (`ifbus.steps`); `ifbus.sync` and `ifbus.aio` give them their blocking and
their awaiting form. The mutable state is whether the claim has ended; nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

import attrs

from ifbus import calls, lease, module
from ifbus.errors import IfbusError, InvalidParams, LeaseLost, NotFound, StaleToken
from ifbus.lease import Tenure
from ifbus.models import BlockerAlert, Execution, ResourceLimits, ServiceContract, Task, TaskClaim
from ifbus.request import Call
from ifbus.steps import Steps, ask

if TYPE_CHECKING:
    from ifbus.answers import ClaimEnd, CostEntry

if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultingTypeVar

    # The payload as it is, where no type is asked for. (The default is Python 3.13's; only type checkers need it.)
    S = DefaultingTypeVar("S", default=dict[str, Any])
else:
    S = TypeVar("S")
R = TypeVar("R")
MAX_ERROR_CHARS = 1000  # at most 4 KiB in UTF-8, which is what the daemon takes

Verdict = Literal["fail", "release", "none"]


class Loaded(Protocol):
    """Which contract is loaded for each module of a swarm, by SHA-256."""

    def get(self, key: str, /) -> ServiceContract | None: ...
    def __setitem__(self, key: str, value: ServiceContract, /) -> None: ...
    def pop(self, key: str, default: None, /) -> ServiceContract | None: ...


def verdict_on(error: BaseException | None, *, has_ended: bool) -> Verdict:
    """What leaving the ``with`` block does to the claim.

    Args:
        error: What the block raised.
        has_ended: The holder said how it went, or the lease is lost.
    """
    if has_ended or isinstance(error, StaleToken):
        return "none"
    # An exception is the task's failure; Ctrl-C and cancellation say nothing about the task, so others may try it.
    return "fail" if isinstance(error, Exception) else "release"


def structure(spec: type[S] | None, payload: dict[str, Any], task_id: str) -> S:
    """The payload as the holder's own type: an attrs class or dataclass by field names, ``dict`` (or None) as it is.

    Keys that the type lacks are passed over, so that whoever creates tasks may add some first.

    Raises:
        InvalidParams: A required field is missing, or the type refuses a value.
    """
    if spec is None or spec is dict:
        return payload  # type: ignore[return-value]
    names = getattr(spec, "__attrs_attrs__", None) or tuple(getattr(spec, "__dataclass_fields__", {}).values())
    fields = {field.alias if isinstance(field, attrs.Attribute) else field.name for field in names}
    try:
        return spec(**{name: value for name, value in payload.items() if name in fields})
    except (TypeError, ValueError) as error:
        raise InvalidParams(
            f"cannot read the payload of {task_id} as {spec.__name__}: {error}", data={"task_id": task_id}
        ) from error


class ClaimCore(Generic[S]):
    """The state of one claim; see `ifbus.sync.Claim`."""

    def __init__(
        self,
        grant: TaskClaim,
        tenure: Tenure,
        loaded: Loaded,
        spec: type[S] | None,
        perform: Callable[[Call[Any]], Any],
        on_end: Callable[[], None],
    ) -> None:
        self._grant = grant
        self._tenure = tenure
        self._loaded = loaded
        self._spec_type = spec
        self._spec: S | None = None
        self._perform = perform
        self._on_end = on_end
        self._has_ended = False

    @property
    def task_id(self) -> str:
        """The task's name."""
        return self._grant.task_id

    @property
    def swarm_id(self) -> str:
        """The holder."""
        return self._grant.swarm_id

    @property
    def token(self) -> int:
        """The fencing token."""
        return self._grant.token

    @property
    def handle(self) -> str:
        """Task and fencing token in one word, ``T-7@41``."""
        return self._grant.handle

    @property
    def grant(self) -> TaskClaim:
        """What the daemon answered to the claim, with its receipt."""
        return self._grant

    @property
    def task(self) -> Task:
        """The task as it stood when it was claimed."""
        return self._grant.task

    @property
    def payload(self) -> dict[str, Any]:
        """What the task's creator wants the holder to know."""
        return self._grant.task.payload

    @property
    def spec(self) -> S:
        """The payload as the type that was asked for. Raises InvalidParams where it does not fit."""
        if self._spec is None:
            self._spec = structure(self._spec_type, self.payload, self.task_id)
        return self._spec

    @property
    def has_ended(self) -> bool:
        """Whether the holder said how it went."""
        return self._has_ended

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.handle} {self.task.title!r}{' ended' if self._has_ended else ''}>"

    def check(self) -> None:
        """Return if the claim can be proven at this moment; ask before touching the world outside.

        Raises:
            LeaseLost: It cannot: stop this work.
        """
        lease.check(self._tenure, self.handle)

    def _end(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._tenure.let_go(self.handle)
            self._on_end()

    def _as_last_word(self, call: Call[R]) -> Steps[R]:
        """A call of the holder's that ends the claim."""
        self._tenure.ending.add(self.handle)
        try:
            answer = yield from self._as_holder(call)
        finally:
            self._tenure.ending.discard(self.handle)
        self._end()
        return answer

    def _as_holder(self, call: Call[R]) -> Steps[R]:
        if self._has_ended:
            raise StaleToken(f"cannot {call.method.split('.')[1]}: {self.handle} was ended by its holder before")
        self.check()
        try:
            return (yield from ask(call))
        except LeaseLost:
            raise
        except StaleToken as error:
            self._end()
            raise LeaseLost(error.message, data=error.data) from error

    @property
    def handover(self) -> dict[str, Any]:
        """What earlier owners left: ``attempts``, ``percent``, ``note``, ``spent_usd``, ``artefacts``, ``errors``, ``last``; empty without one."""
        return self._grant.handover or {}

    def progress_steps(
        self,
        percent: int,
        note: str | None = None,
        *,
        artefacts: Sequence[Mapping[str, Any]] | None = None,
        blocked_on: str | None = None,
        next_action: str | None = None,
    ) -> Steps[Task]:
        """Say how far it is, 0 to 100; the task as it stands. Raises LeaseLost."""
        call = calls.report_progress(
            self.task_id,
            self.swarm_id,
            self.token,
            percent,
            note=note,
            artefacts=artefacts,
            blocked_on=blocked_on,
            next_action=next_action,
        )
        return (yield from self._as_holder(call)).task

    def complete_steps(self, result: Any = None) -> Steps[ClaimEnd]:
        """End the task with a result, any plain value of at most 32 KiB. Raises LeaseLost."""
        call = calls.complete_task(self.task_id, self.swarm_id, self.token, result=result)
        return (yield from self._as_last_word(call))

    def fail_steps(self, error: str, *, retry: bool | None = None) -> Steps[ClaimEnd]:
        """End the claim with a failure, and the task too, unless it is to be offered again. Raises LeaseLost."""
        text = error[:MAX_ERROR_CHARS]
        call = calls.fail_task(self.task_id, self.swarm_id, self.token, text, retry=retry)
        return (yield from self._as_last_word(call))

    def release_steps(self, note: str | None = None) -> Steps[ClaimEnd]:
        """Give the task back without a verdict; others may claim it at once. Raises LeaseLost."""
        call = calls.release_task(self.task_id, self.swarm_id, self.token, note=note)
        return (yield from self._as_last_word(call))

    def blocked_steps(
        self, reason: str, *, needs: Sequence[str] | None = None, severity: calls.Severity | None = None
    ) -> Steps[BlockerAlert]:
        """Give the task back because it cannot go on; it stays blocked until somebody resolves that. Raises LeaseLost.

        Args:
            needs: Capabilities that would help; the best qualified swarms are asked.
        """
        call = calls.detect_blocker(
            self.swarm_id, reason, task_id=self.task_id, token=self.token, needs=needs, severity=severity, release=True
        )
        return (yield from self._as_last_word(call))

    def execute_steps(
        self,
        source: module.Source | module.Module,
        *,
        input: Any = None,
        limits: ResourceLimits | None = None,
        kind: module.Kind | None = None,
        export: str = "",
        profile: str = "default",
    ) -> Steps[Execution]:
        """Run WebAssembly in a sandbox for this task; uploaded and loaded once per content.

        Args:
            source: A path, the bytes, or the SHA-256 of a module that was uploaded before.
            input: For kind ``core`` ``{"args": [numbers]}``, else any JSON value.
            limits: Memory, time and so on; the defaults of `ResourceLimits` if not given.
            kind: ``core``, ``command`` or ``component``; found out from the bytes if not given.
            export: The function to call, if it is not the kind's usual one.
            profile: Compile profile of the daemon's policy.

        Raises:
            LimitExceeded, GuestFailed: It was stopped; it failed by itself.
            InvalidModule, CompileLimit: It cannot be loaded.
            LeaseLost: The claim has ended.
        """
        wasm = module.find(source)
        known = self._loaded.get(wasm.sha256)
        contract = ServiceContract(
            module_sha256=wasm.sha256,
            kind=kind or wasm.kind or (known.kind if known is not None else module.unknown_kind()),
            export=export,
            limits=limits or ResourceLimits(),
            profile=profile,
        )
        call = calls.execute_task(
            self.swarm_id, input, module_sha256=wasm.sha256, task_id=self.task_id, token=self.token
        )
        if known == contract:
            try:
                return (yield from self._as_holder(call))
            except NotFound:
                self._loaded.pop(wasm.sha256, None)  # somebody unloaded it meanwhile
        yield from load(self.swarm_id, wasm, contract)
        self._loaded[wasm.sha256] = contract
        return (yield from self._as_holder(call))

    def leave_steps(self, error: BaseException | None) -> Steps[None]:
        """The end of the ``with`` block: an exception fails the task, no verdict gives it back, with a warning."""
        verdict = verdict_on(error, has_ended=self._has_ended)
        if verdict == "none":
            self._end()
            return
        try:
            if verdict == "fail":
                yield from self.fail_steps(f"{type(error).__name__}: {error}")
            elif error is None:
                warnings.warn(f"{self.handle} was left without a verdict: given back", RuntimeWarning, stacklevel=5)
                yield from self.release_steps("left without a verdict")
            else:
                yield from self.release_steps(f"interrupted: {type(error).__name__}")
        except IfbusError as failure:
            if error is None:
                raise
            # The block's own error is what the caller must see; the claim comes free with its lease.
            error.add_note(f"{self.handle} could not be ended: {failure.code}: {failure.message}")
        finally:
            self._end()


def load(swarm_id: str, wasm: module.Module, contract: ServiceContract) -> Steps[None]:
    """Load a module for a swarm, after uploading it if the daemon does not have it."""
    try:
        yield from ask(calls.load_swarm(swarm_id, contract))
    except NotFound:
        if not wasm.has_data:
            raise
        yield from module.upload(wasm)
        yield from ask(calls.load_swarm(swarm_id, contract))


class SpendingCore:
    """Money set aside for one operation; see `ifbus.sync.Spending`."""

    def __init__(self, claim: ClaimCore[Any], operation: str, estimate_usd: calls.Usd) -> None:
        self._claim = claim
        self._operation = operation
        self._estimate_usd = estimate_usd
        self._reservation_id: str | None = None
        self._perform = claim._perform

    def reserve_steps(self) -> Steps[None]:
        """Set the estimate aside. Raises BudgetExceeded, LeaseLost."""
        claim = self._claim
        reservation = yield from claim._as_holder(
            calls.reserve_cost(
                claim.swarm_id, self._operation, self._estimate_usd, task_id=claim.task_id, token=claim.token
            )
        )
        self._reservation_id = reservation.reservation_id

    def settle_steps(
        self, *, usd: calls.Usd | None = None, model: str | None = None, usage: Mapping[str, int] | None = None
    ) -> Steps[CostEntry]:
        """Record what it really cost, once.

        Args:
            usd: The cost; the estimate counts if it is not given.
            model: The language model, free text.
            usage: Token counts: any of ``input_tokens``, ``output_tokens``, ``cache_read_tokens``, ``cache_write_tokens``.

        Raises:
            LeaseLost: The claim has ended, and with it the reservation.
            InvalidParams: It was settled before.
        """
        if self._reservation_id is None:
            raise InvalidParams(f"cannot settle {self._operation}: nothing is reserved, or it was settled before")
        cost = self._estimate_usd if usd is None else usd
        entry = yield from self._claim._as_holder(
            calls.settle_cost(self._claim.swarm_id, self._reservation_id, cost, model=model, usage=usage)
        )
        self._reservation_id = None
        return entry

    def give_back_steps(self, error: BaseException | None) -> Steps[None]:
        """The end of the ``with`` block: what was not settled is given back."""
        if self._reservation_id is None or self._claim.has_ended:
            return  # settled, or given back with the claim
        try:
            yield from self.settle_steps(usd=0)
        except NotFound:
            self._reservation_id = None  # it went with the claim
        except IfbusError as failure:
            if error is None:
                raise
            error.add_note(f"the reservation for {self._operation} stays until the claim ends: {failure.message}")
