"""`python -m bench`: the microbenchmark; `python -m bench gate`: the speed gate."""

import sys

from . import micro

sys.exit(micro.main())
