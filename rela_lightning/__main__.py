"""`rela` and `python -m rela_lightning`."""

from __future__ import annotations

import sys

from rela_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
