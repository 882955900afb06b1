"""python -m dspark_kernels: the command line, as `dspark`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
