"""The front door of the command line: lists the verbs, imports nothing heavy, hands over."""

from __future__ import annotations

import atexit
import difflib
import importlib
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

from camtrain.arguments import announce, make_streams_last
from camtrain.errors import CamtrainError, refused_by_system


class Verb(NamedTuple):
    """A verb: the module whose ``main(args)`` runs it, and what it does.

    ``main`` returns the exit status; None means 0.
    """

    module: str
    text: str


VERBS = {
    "fit": Verb(
        "camtrain.training.cli.main", "train a CAM network, watch it, test it, write the bundle"
    ),
    "validate": Verb("camtrain.training.cli.main", "measure a checkpoint on the val split"),
    "test": Verb("camtrain.training.cli.main", "measure a checkpoint on the test split"),
    "predict": Verb(
        "camtrain.inference.predict", "classes, heatmaps and boxes of files and folders"
    ),
    "export": Verb(
        "camtrain.inference.export.command", "write a trained network as ONNX or torch program"
    ),
    "push": Verb("camtrain.inference.hub", "put a bundle on the Hugging Face Hub, with its card"),
    "demo": Verb("camtrain.inference.demo", "a local page to drop a picture on"),
    "models": Verb("camtrain.model.catalogue", "list the networks that convert, with their maps"),
    "check-data": Verb(
        "camtrain.data.checking.check", "read every picture once and list what is wrong"
    ),
    "shards": Verb("camtrain.data.shards.write", "write a data set as WebDataset shards"),
}

# What other programs call these verbs.
_SYNONYMS = {
    **{"train": "fit", "finetune": "fit", "eval": "test", "evaluate": "test", "val": "validate"},
    **{"infer": "predict", "inference": "predict", "convert": "export", "serve": "demo"},
    **{"upload": "push", "publish": "push"},
}

USAGE = """\
camtrain VERB ... converts CNN classifiers into class activation mapping (CAM) networks.

{verbs}

Examples:
  camtrain fit --config configs/quickstart.yaml
  camtrain fit --model.backbone torchvision/resnet18 --data.root photos --trainer.max_epochs 5
  camtrain check-data photos
  camtrain predict runs/quickstart/model.safetensors photos --output found
  camtrain test --ckpt_path runs/quickstart/checkpoints/best.ckpt

camtrain VERB --help lists the options of a verb."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit status: 2 for what the caller can mend, 130 for Ctrl-C."""
    if argv is not None:
        return _run(list(argv))
    files = make_streams_last()
    status = _run(sys.argv[1:])
    sys.stdout.flush()
    for error in (file.error for file in files if file.error):
        return status or _complain(f"What was printed is lost ({error.strerror}); print elsewhere.")
    return status


def _run(args: list[str]) -> int:
    """Run a verb and return its exit status."""
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] == "--version":
        import camtrain

        print(f"camtrain {camtrain.__version__}")
        return 0
    if args[0] not in VERBS:
        meant = _SYNONYMS.get(args[0])
        near = [meant] if meant else difflib.get_close_matches(args[0], VERBS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return _complain(f"The verb must be one of {', '.join(VERBS)}, got {args[0]!r}{hint}")
    try:
        with announce("Loading torch and what the verb needs"):
            module = importlib.import_module(VERBS[args[0]].module)
        status: int | None = module.main(args)
    except CamtrainError as error:
        return _complain(str(error))
    except OSError as error:
        if not error.errno:
            raise
        return _complain(str(refused_by_system(error)))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # or a second one would break into the exit
        return 130
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)  # status 130, no traceback
    return status or 0


def usage() -> str:
    """What ``camtrain`` without arguments prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:{width}}  {verb.text}" for name, verb in VERBS.items())
    return USAGE.format(verbs=verbs)


def _complain(message: str) -> int:
    print(f"camtrain: error: {message}", file=sys.stderr)
    return 2
