"""`python -m udl_dist` is `udl`: modules come from where this package was found, not from the
current folder.
"""

import sys
from pathlib import Path

if not sys.flags.safe_path and Path(sys.path[0]).absolute() != Path(__file__).parent.parent:
    del sys.path[0]  # the current folder, which Python puts first

from udl_dist.cli import main

main()
