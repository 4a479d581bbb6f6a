"""``python -m ifbus.cli``: the `ifbus` command."""

import sys

from ifbus.cli import main

sys.exit(main())
