"""What this build is called. Here, because asking the installed package costs each start 25 ms."""

from typing import Final

VERSION: Final = "0.1.0"
