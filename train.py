"""The command line of camtrain: ``python train.py VERB ...`` is ``camtrain VERB ...``."""

import sys

from camtrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
