"""`python -m cnn_research.report`: tables over many runs."""

import sys

from cnn_research.report.compare import main

if __name__ == "__main__":
    sys.exit(main())
