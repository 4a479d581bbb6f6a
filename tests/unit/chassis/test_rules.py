"""The chassis' decisions."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbus.errors import GuestFailed, InvalidModule, InvalidParams, LimitExceeded, NotFound, PermissionDenied
from ifbus.models import ResourceLimits, ServiceContract, SLODefinition
from ifbus.protocol import Limits as WireLimits
from ifbusd.chassis import rules
from ifbusd.chassis.model import ChassisConfig, CompileProfile

CONFIG = ChassisConfig()
SLO = SLODefinition(p99_latency_ms=10, success_ratio=0.9)


def _contract(**values: Any) -> ServiceContract:
    return ServiceContract(module_sha256="0" * 64, **values)


@given(
    rate=st.integers(1, 10_000),
    capacity=st.integers(1, 10_000),
    gaps_us=st.lists(st.integers(0, 200_000), min_size=1, max_size=200),
)
def test_bucket_grants_no_more_than_its_rate_and_burst(rate: int, capacity: int, gaps_us: list[int]) -> None:
    """Over any time, what is granted fits into the capacity plus what flowed in."""
    bucket = rules.Bucket.full(rate_per_s=rate, capacity=capacity, now_us=0)
    now_us = granted = 0
    for gap_us in gaps_us:
        now_us += gap_us
        bucket, wait_us = rules.take(bucket, now_us)
        granted += wait_us == 0
    assert granted <= capacity + rate * now_us / 1_000_000 + 1e-6


@given(rate=st.integers(1, 10_000), at_us=st.integers(0, 10**12))
def test_bucket_grants_after_the_wait_that_it_named(rate: int, at_us: int) -> None:
    """Whoever waits as long as told gets it; whoever comes a millisecond earlier does not."""
    bucket = rules.Bucket.full(rate_per_s=rate, capacity=1, now_us=at_us)
    bucket, _ = rules.take(bucket, at_us)
    bucket, wait_us = rules.take(bucket, at_us)
    assert wait_us > 0
    assert rules.take(bucket, at_us + wait_us)[1] == 0
    if wait_us > 1000:
        assert rules.take(bucket, at_us + wait_us - 1000)[1] > 0


def test_bucket_ignores_a_clock_that_goes_back() -> None:
    """Time that runs backwards takes nothing away and gives nothing."""
    bucket = rules.Bucket.full(rate_per_s=10, capacity=10, now_us=1_000_000)
    bucket, _ = rules.take(bucket, 1_000_000, 10)
    assert rules.take(bucket, 0)[1] == 100_000


def test_charge_counts_what_was_used_already() -> None:
    """Use beyond the level is a debt, and the wait is until it is paid."""
    bucket = rules.Bucket.full(rate_per_s=100_000, capacity=10_000, now_us=0)
    bucket, wait_us = rules.charge(bucket, 0, 20_000)
    assert (bucket.level, wait_us) == (-10_000, 100_000)
    assert rules.charge(bucket, 100_000, 0)[1] == 0


@given(failures=st.integers(0, 1000), chance=st.floats(0, 1))
def test_restarts_back_off_within_bounds(failures: int, chance: float) -> None:
    """The first restart is quick, the hundredth is not a busy loop, none takes for ever."""
    delay_ms = rules.restart_delay_ms(failures, chance)
    assert 37 <= delay_ms <= 10_000
    assert delay_ms <= rules.restart_delay_ms(failures + 1, chance)


@pytest.mark.parametrize(
    ("contract", "param"),
    [
        (_contract(limits=ResourceLimits(memory_bytes=CONFIG.max_memory_bytes + 1)), "limits.memory_bytes"),
        (_contract(limits=ResourceLimits(wall_ms=CONFIG.max_wall_ms + 1)), "limits.wall_ms"),
        (_contract(limits=ResourceLimits(output_bytes=CONFIG.max_output_bytes + 1)), "limits.output_bytes"),
        (_contract(limits=ResourceLimits(calls_per_s=CONFIG.max_calls_per_s + 1)), "limits.calls_per_s"),
        (_contract(limits=ResourceLimits(memory_bytes=65535)), "limits.memory_bytes"),
        (_contract(export="x" * 257), "export"),
    ],
)
def test_contract_beyond_policy_names_the_parameter(contract: ServiceContract, param: str) -> None:
    """The first value that the host does not take is named."""
    with pytest.raises(InvalidParams) as caught:
        rules.check_contract(contract, CONFIG)
    assert caught.value.data["param"] == param


def test_contract_at_the_policy_is_taken() -> None:
    """The bounds themselves are allowed."""
    limits = ResourceLimits(
        memory_bytes=CONFIG.max_memory_bytes,
        wall_ms=CONFIG.max_wall_ms,
        output_bytes=CONFIG.max_output_bytes,
        calls_per_s=CONFIG.max_calls_per_s,
    )
    rules.check_contract(_contract(limits=limits), CONFIG)
    rules.check_contract(_contract(limits=ResourceLimits(memory_bytes=65536)), CONFIG)


def test_profile_is_for_those_whom_the_policy_names() -> None:
    """Everybody, named users or operators: whom a profile is not for is told who could change it."""
    config = ChassisConfig(
        profiles={
            "default": CompileProfile(everybody=True),
            "large": CompileProfile(uids=(7,)),
            "own": CompileProfile(),
        }
    )
    large = _contract(profile="large")
    assert rules.choose_profile(_contract(), config, uid=1, is_operator=False).everybody
    assert rules.choose_profile(large, config, uid=7, is_operator=False) is config.profiles["large"]
    assert rules.choose_profile(_contract(profile="own"), config, uid=1, is_operator=True) is config.profiles["own"]
    with pytest.raises(PermissionDenied) as denied:
        rules.choose_profile(large, config, uid=8, is_operator=False)
    assert denied.value.would_change[0]["by"] == "operator"
    with pytest.raises(NotFound):
        rules.choose_profile(_contract(profile="huge"), config, uid=7, is_operator=True)


@pytest.mark.parametrize(
    "wrong", [{"limits": {"wall_ms": 0.5}}, {"limits": {"wall_ms": True}}, {"export": b"run"}, {"version": ["1"]}]
)
def test_contract_of_wrong_types_is_refused_before_policy(wrong: dict[str, Any]) -> None:
    """A map from the wire with a value of another type is no contract."""
    with pytest.raises(InvalidParams):
        ServiceContract.from_wire({"module_sha256": "0" * 64, **wrong})


def test_module_is_refused_by_its_first_bytes() -> None:
    """Length, magic, version and kind are checked before anything is spent."""
    profile = CompileProfile(module_bytes=1024)
    rules.check_module(b"\0asm\1\0\0\0", 1024, _contract(), profile)
    rules.check_module(b"\0asm\x0d\0\1\0", 1024, _contract(kind="component"), profile)
    with pytest.raises(LimitExceeded):
        rules.check_module(b"\0asm\1\0\0\0", 1025, _contract(), profile)
    for head in (b"", b"\0asm", b"\x7fELF\2\1\1\0", b"\0asm\2\0\0\0", b"\0asm\x0d\0\1\0"):
        with pytest.raises(InvalidModule):
            rules.check_module(head, 8, _contract(), profile)


def test_module_that_is_too_long_is_told_which_profiles_would_take_it() -> None:
    """Each profile that is large enough is named with who may use it; without one an operator could make one."""
    profiles = {
        "default": CompileProfile(module_bytes=1024, everybody=True),
        "huge": CompileProfile(module_bytes=4096),
        "large": CompileProfile(module_bytes=2048, everybody=True),
    }

    def changes(size: int) -> list[tuple[str, str]]:
        with pytest.raises(LimitExceeded) as refused:
            rules.check_module(b"\0asm\1\0\0\0", size, _contract(), profiles["default"], profiles)
        return [(change["by"], change["what"]) for change in refused.value.would_change]

    huge = ("self", 'profile="huge" takes 4096 bytes; operators and chassis.profiles.huge.uids may use it')
    assert changes(2048) == [huge, ("self", 'profile="large" takes 2048 bytes; everybody may use it')]
    assert changes(2049) == [huge]
    assert changes(4097) == [("operator", "a larger compile profile")]


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=5) | st.dictionaries(st.text(), children, max_size=5),
)


@given(_JSON)
def test_output_that_passes_goes_over_the_wire(value: Any) -> None:
    """What the check lets through fits the wire's own bounds: depth, sizes and 64 bits."""
    import msgpack

    if rules.check_output(value) is None:
        wire = WireLimits()
        msgpack.unpackb(
            msgpack.packb(value), max_array_len=wire.array_items, max_map_len=wire.map_items, strict_map_key=True
        )


@pytest.mark.parametrize(
    "value", [1 << 64, -(1 << 63) - 1, [0] * 4097, {str(n): n for n in range(513)}, json.loads("[" * 26 + "]" * 26)]
)
def test_output_beyond_the_wire_is_named(value: Any) -> None:
    """Numbers beyond 64 bits, long lists, large maps and deep nesting are refused with a reason."""
    assert rules.check_output([value])


def test_failure_tells_the_memory_limit_from_other_traps() -> None:
    """A trap with no page left to grow by is the memory limit's; the same trap in a small memory is the guest's."""
    contract = _contract(limits=ResourceLimits(memory_bytes=1 << 20))
    at_limit = rules.failure(contract, "trap", "unreachable", b"", 1 << 20)
    assert isinstance(at_limit, LimitExceeded)
    assert at_limit.data == {"limit": "memory_bytes", "used": 1 << 20, "allowed": 1 << 20} | {
        "would_change": at_limit.would_change
    }
    assert isinstance(rules.failure(contract, "trap", "unreachable", b"", (1 << 20) - 65536), GuestFailed)
    assert isinstance(rules.failure(contract, "exit", "exit status 1", b"", 1 << 20), GuestFailed)
    assert isinstance(rules.failure(contract, "memory", "", b"", 0), LimitExceeded)
    assert isinstance(rules.failure(contract, "input", "", b"", 0), InvalidParams)


def test_failure_shows_what_a_guest_said_without_its_tricks() -> None:
    """Standard error comes back as text, bounded and without control characters."""
    failed = rules.failure(_contract(), "exit", "exit status 1", b"\x1b[2Jbad\xff\n" + b"x" * 5000, 0)
    assert failed.data["stderr"].startswith("?[2Jbad\ufffd\n")
    assert len(failed.data["stderr"]) == 1024


@given(total=st.integers(1, 1000), data=st.data())
def test_reputation_rises_with_success_and_with_evidence(total: int, data: st.DataObject) -> None:
    """It is between 0 and 1, never above the success ratio, and grows with each success more."""
    succeeded = data.draw(st.integers(0, total))
    value = rules.reputation(succeeded, total, 5_000, SLO)
    assert 0 <= value <= succeeded / total + 1e-12
    assert value <= rules.reputation(succeeded + 1, total + 1, 5_000, SLO) + 1e-12


def test_reputation_against_a_known_interval() -> None:
    """81 of 263: Newcombe (1998, Stat. Med. 17, 857-872) gives 0.2553 for the lower Wilson bound."""
    assert rules.reputation(81, 263, 1, SLO) == pytest.approx(0.2553, abs=5e-5)
    assert rules.reputation(81, 263, 20_000, SLO) == pytest.approx(0.2553 / 2, abs=5e-5)
    assert rules.reputation(0, 0, 1, SLO) == 0


def test_quality_over_samples() -> None:
    """Percentiles are nearest-rank, and the promise holds only if both of its halves do."""
    samples = [rules.Sample(n > 5, n * 100) for n in range(1, 101)]
    quality = rules.assess(samples, SLO)
    assert quality is not None
    assert (quality.p50_us, quality.p99_us, quality.success_ratio) == (5_000, 9_900, 0.95)
    assert quality.slo_met
    slow = rules.assess(samples, SLODefinition(p99_latency_ms=9, success_ratio=0.9))
    failing = rules.assess(samples, SLODefinition(p99_latency_ms=10, success_ratio=0.96))
    assert slow is not None
    assert failing is not None
    assert not slow.slo_met
    assert not failing.slo_met
    assert rules.assess([], SLO) is None
