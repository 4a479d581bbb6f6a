"""The wait-for graph's rules, held against a naive walk."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ifbusd.coordinator.waits.rules import Edge, best_help, find_path, would_deadlock

NODES = [f"task:T-{number}" for number in range(6)]
pairs = st.lists(st.tuples(st.sampled_from(NODES), st.sampled_from(NODES)), max_size=16)


def edge(source: str, target: str) -> Edge:
    return Edge(source, target, "dependency")


def reachable(edges: list[tuple[str, str]], source: str) -> set[str]:
    """All that can be reached, by going round until nothing is new."""
    seen = {source}
    while more := {target for start, target in edges if start in seen} - seen:
        seen |= more
    return seen


@given(pairs, st.sampled_from(NODES), st.sampled_from(NODES))
def test_a_path_is_found_exactly_where_there_is_one(edges: list[tuple[str, str]], source: str, target: str) -> None:
    """What is found is a chain of the graph's edges from one end to the other, and nothing is found only where there is none."""

    def edges_of(node: str) -> Iterator[Edge]:
        return (edge(*pair) for pair in edges if pair[0] == node)

    path = find_path(edges_of, source, target)
    assert (path is not None) == (target in reachable(edges, source))
    if path:
        assert path[0].source == source
        assert path[-1].target == target
        assert all(one.target == other.source for one, other in pairwise(path))
        assert all((one.source, one.target) in edges for one in path)


def test_a_cycle_is_named_from_who_would_close_it() -> None:
    """Each node once, the first again at the end, in words and as data."""
    cycle = [
        Edge("task:T-1", "resource:gpu:0", "resource"),
        Edge("resource:gpu:0", "task:T-2", "held"),
        Edge("task:T-2", "swarm:docs", "reply", 7, "Q-1"),
        Edge("swarm:docs", "task:T-1", "works_on"),
    ]
    refusal = would_deadlock("wait for gpu:0", cycle)
    assert refusal.data["cycle"] == ["task:T-1", "resource:gpu:0", "task:T-2", "swarm:docs", "task:T-1"]
    assert refusal.message == (
        "cannot wait for gpu:0: T-1 waits for gpu:0, which is held for T-2, which waits for a reply of docs, which works on T-1"
    )
    assert refusal.would_change


def test_help_goes_where_it_frees_the_most() -> None:
    """Two tasks hang on an answer, three on a resource: the resource; a task that waits for both is freed by neither."""
    edges = [
        Edge("task:T-1", "swarm:a", "reply", 1),
        Edge("task:T-2", "task:T-1", "dependency"),
        Edge("task:T-3", "resource:gpu:0", "resource", 5),
        Edge("task:T-4", "resource:gpu:0", "resource", 6),
        Edge("task:T-5", "task:T-4", "dependency"),
        Edge("resource:gpu:0", "task:T-9", "held", 9),
        Edge("task:T-6", "task:T-1", "dependency"),
        Edge("task:T-6", "task:T-3", "dependency"),
    ]
    best = best_help(edges)
    assert best is not None
    assert (best.edge.target, best.frees) == ("task:T-9", ("T-3", "T-4", "T-5"))


def test_between_equals_the_oldest_wait_wins() -> None:
    """And nothing is to be helped where nobody has to act."""
    older, newer = Edge("task:T-2", "person", "approval", 1), Edge("task:T-1", "person", "approval", 2)
    best = best_help([newer, older])
    assert best is not None
    assert best.edge == older
    assert best_help([edge("task:T-1", "task:T-2")]) is None


def test_help_is_found_where_two_waits_hold_up_each_task() -> None:
    """Neither frees one by itself: the one that holds up the most is asked for."""
    edges = [
        Edge("task:T-1", "swarm:a", "reply", 1),
        Edge("task:T-1", "person", "approval", 2),
        Edge("task:T-2", "swarm:b", "reply", 3),
        Edge("task:T-2", "task:T-1", "dependency"),
    ]
    best = best_help(edges)
    assert best is not None
    assert (best.edge, best.frees, best.holds_up) == (edges[0], (), 2)
    best = best_help(edges[1:])
    assert best is not None
    assert (best.edge.target, best.frees, best.holds_up) == ("person", ("T-1",), 2)


needs = st.sampled_from(["dependency", "dependency", "reply", "held"])


@given(st.lists(st.tuples(st.sampled_from(NODES), st.sampled_from(NODES), needs), max_size=14))
def test_no_other_edge_would_free_more(rows: list[tuple[str, str, str]]) -> None:
    """By counting, for each edge that somebody could end, the tasks that no longer lead to somebody who has to act."""
    edges = list(dict.fromkeys(Edge(source, target, why) for source, target, why in rows))  # type: ignore[arg-type]

    def stuck(left: list[Edge]) -> int:
        ways = [(one.source, one.target) for one in left]
        needing = {one.source for one in left if one.why != "dependency"}
        return sum(bool(reachable(ways, node) & needing) for node in NODES)

    frees = [
        stuck(edges) - stuck([other for other in edges if other != one]) for one in edges if one.why != "dependency"
    ]
    best = best_help(edges)
    assert (len(best.frees) if best else 0) == max(frees, default=0)
