"""``python -m camtrain`` is ``camtrain``; ``torchrun -m camtrain`` starts it in many processes."""

import sys

from camtrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
