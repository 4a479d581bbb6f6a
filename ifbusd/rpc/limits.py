"""What one client may cost the others: every limit of the wire in one place, each with its reason."""

from __future__ import annotations

import attrs
from attrs.validators import and_, ge, le

from ifbus.protocol import Limits


@attrs.frozen(kw_only=True)
class RpcLimits:
    """The wire's limits; what goes beyond one is answered with an error or loses its connection, others go on.

    Attributes:
        message_bytes: One message. 64 KiB: as empty maps they cost 3.7 ms to decode, 1 MiB of them 131 ms for everybody.
        nesting: Containers inside one another in one message. 32: deeper than any real payload.
        array_items, map_items: Declared lengths, refused before the elements arrive: MessagePack allocates for them at once,
            8 bytes per item and level. More than these belong into a blob.
        in_flight: Requests of one connection that are not answered yet. 64: enough to fill a group commit.
        connections: Connections in all. 1024, at about 50 kB and one descriptor each. Fewer where the limit of open files
            (LimitNOFILE=) does not leave 256 for the daemon itself; the log says so at start.
        connections_per_uid: Connections of one user, so that no user shuts the others out. 256: a hundred agents of one user, two
            connections each (its own and its renewals'), and three more such users fit.
        requests_per_s: Requests per second of one user; a changing one counts 2, a list 10, a heavy one 50. 200,000: about four times
            what one core answers, so it stops a runaway only where an operator lowers it; the turns below keep it fair.
        burst_requests: How many of them may come at once.
        turn_requests: Requests of one connection in a row before all others have their turn. 8, so that 64 flooding
            connections keep the next one waiting for about 10 ms at most.
        slot_wait_ms: How long a request beyond `in_flight` waits, unread, before it is refused. 50 ms: a burst of short
            requests passes, a connection full of long waits still hears `$/cancel`.
        send_queue_bytes: Replies and pushes that a client has not read yet, beyond the kernel's 200 kB. 1 MiB: a push that
            finds more waiting ends the connection (the durable inbox keeps the message), a reply waits for room.
        unfinished_ms: Time from the first byte of a message to its last. 10 s: a local write takes microseconds.
        write_ms: Time in which a waiting message must be taken by the client. 10 s.
        swarms_per_connection: Swarms that one connection hears `attention` for.
    """

    message_bytes: int = attrs.field(default=64 << 10, validator=and_(ge(4 << 10), le(1 << 20)))
    nesting: int = attrs.field(default=32, validator=and_(ge(8), le(128)))
    array_items: int = attrs.field(default=1024, validator=and_(ge(64), le(65_536)))
    map_items: int = attrs.field(default=256, validator=and_(ge(64), le(65_536)))
    in_flight: int = attrs.field(default=64, validator=and_(ge(1), le(4096)))
    connections: int = attrs.field(default=1024, validator=and_(ge(1), le(65_536)))
    connections_per_uid: int = attrs.field(default=256, validator=and_(ge(1), le(65_536)))
    requests_per_s: int = attrs.field(default=200_000, validator=and_(ge(1), le(10_000_000)))
    burst_requests: int = attrs.field(default=100_000, validator=and_(ge(100), le(10_000_000)))
    turn_requests: int = attrs.field(default=8, validator=and_(ge(1), le(1024)))
    slot_wait_ms: int = attrs.field(default=50, validator=and_(ge(0), le(10_000)))
    send_queue_bytes: int = attrs.field(default=1 << 20, validator=and_(ge(64 << 10), le(64 << 20)))
    unfinished_ms: int = attrs.field(default=10_000, validator=and_(ge(100), le(600_000)))
    write_ms: int = attrs.field(default=10_000, validator=and_(ge(100), le(600_000)))
    swarms_per_connection: int = attrs.field(default=64, validator=and_(ge(1), le(4096)))

    def for_messages(self) -> Limits:
        """The part that the protocol core enforces."""
        return Limits(
            message_bytes=self.message_bytes,
            nesting=self.nesting,
            array_items=self.array_items,
            map_items=self.map_items,
            string_bytes=self.message_bytes,
        )
