"""One module a noun; each has ``COMMANDS``: verb (``""`` for a noun alone) -> `ifbus.cli.command.Command`."""
