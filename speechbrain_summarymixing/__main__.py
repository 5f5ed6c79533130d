"""``python -m speechbrain_summarymixing`` is the command ``summarymixing``."""

import sys

from speechbrain_summarymixing.cli import main

if __name__ == "__main__":
    sys.exit(main())
