import sys

from .micro import main

sys.exit(main())
