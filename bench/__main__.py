"""`python -m bench`: the microbenchmark; `python -m bench gate`: the speed gate."""

import sys

from . import gate, micro

sys.exit(gate.main(sys.argv[2:]) if sys.argv[1:2] == ["gate"] else micro.main())
