"""The Unix socket: who asks, what may be asked, and what one client may cost the others.

`listener` opens the socket, `server` accepts, `connection` serves one client over `ifbus.protocol`, `peer` asks the kernel who
it is, `methods` is the table of what can be called, `signature` checks parameters, `quota` and `limits` bound it all,
`daemon_methods` and `attention` answer for the daemon itself, `describe` writes docs/protocol.md.
"""
