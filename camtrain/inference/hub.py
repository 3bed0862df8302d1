"""Bundles on the Hugging Face Hub: ``hf://ORG/NAME`` reads one, ``camtrain push`` writes one."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from camtrain.arguments import VerbParser
from camtrain.errors import (
    CamtrainFileNotFoundError,
    CamtrainOSError,
    CamtrainValueError,
    join_first,
    one_line,
)
from camtrain.files import check_writable, replacing, write_text
from camtrain.header import (
    BUNDLE_NAME,
    CONFIG_NAME,
    Description,
    model_file,
    read_safetensors_description,
)
from camtrain.model.modules import is_import_path
from camtrain.thresholds import threshold_text

_ADDRESS = re.compile(r"hf:/+(?P<name>[^@]*)(@(?P<revision>.+))?")  # a Path has one slash less
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SITE = "https://huggingface.co"
# The sheet of the card is the first of these that a run has; of several the newest epoch's.
_SHEETS = ("cams/test.jpg", "cams/epoch_*.jpg", "over_epochs.png")


def local_file(path: str | Path) -> str | Path:
    """The path itself; of ``hf://ORG/NAME[@REVISION]`` that of its bundle, downloaded or cached.

    Raises:
        CamtrainFileNotFoundError: The hub cannot be reached, or has no such bundle.
        CamtrainValueError: The address names no repository.
    """
    address = _ADDRESS.fullmatch(str(path))
    if address is None:
        return path
    name = _checked_name(address["name"], "after hf://")
    from huggingface_hub import hf_hub_download  # takes a while to import

    try:
        with _without_token():
            return Path(hf_hub_download(name, BUNDLE_NAME, revision=address["revision"]))
    except CamtrainOSError as error:
        raise CamtrainFileNotFoundError(
            f"{BUNDLE_NAME} of hf://{name} could not be fetched ({error}); check the name, run "
            f"`hf auth login` if it is private, or download the file from {_SITE}/{name} and give "
            "its path."
        ) from None


def main(args: Sequence[str]) -> None:
    """``camtrain push RUN_OR_BUNDLE ORG/NAME``."""
    options = _parser().parse_args(args[1:])
    name = _checked_name(options.name, "as the second argument")
    bundle = model_file(options.model)
    description = read_safetensors_description(bundle) if bundle.is_file() else None
    if description is None:
        raise CamtrainValueError(
            f"push takes a bundle ({BUNDLE_NAME}) or the folder of a run, got {bundle}; make one "
            "of a checkpoint with camtrain export --format safetensors."
        )
    if options.dry_run:
        folder: Path = options.output or Path("hub", name)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CamtrainValueError(f"--output must be a new or empty folder, got {folder}.")
        check_writable(folder, "--output")
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, bundle, description, name, options)
        print(f"Nothing was pushed. {folder} holds what would be: {_listed(folder)}")
        return
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise CamtrainValueError(
            "push needs to know who you are on the Hugging Face Hub; run `hf auth login` first, or "
            "give --dry_run to see what would be pushed."
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write(folder, bundle, description, name, options)
        try:
            with _without_token():
                api = HfApi(library_name="camtrain")
                api.create_repo(name, private=options.private, exist_ok=True)
                message = f"camtrain push {name}"
                api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
        except CamtrainOSError as error:
            raise CamtrainOSError(
                f"{name} could not be pushed ({error}); check that you may write there (`hf auth "
                "whoami`), and push again."
            ) from None
        print(f"Pushed {_listed(folder)} to {_SITE}/{name}")
    print(_loading(name, description))


def _checked_name(name: str, place: str) -> str:
    """The name of a repository; raise CamtrainValueError for anything else."""
    if not _REPOSITORY.fullmatch(name):
        raise CamtrainValueError(
            f"A repository of the Hugging Face Hub is ORG/NAME, got {name!r} {place}."
        )
    return name


@contextmanager
def _without_token() -> Iterator[None]:
    """Turn whatever the hub raises into one line that does not hold the user's token.

    Raises:
        CamtrainOSError: Without the original error, whose text may hold it.
    """
    from huggingface_hub import get_token

    try:
        yield
    except Exception as error:  # of huggingface_hub, of HTTP, of the system
        text = str(error)
        if token := get_token():
            text = text.replace(token, "***")
        text = re.sub(r"hf_\w{8,}", "hf_***", text)
        raise CamtrainOSError(one_line(Exception(text), with_type=False)) from None


def _write(
    folder: Path,
    bundle: Path,
    description: Description,
    name: str,
    options: argparse.Namespace,
) -> None:
    """Write what is pushed: the bundle, the card, and a contact sheet where the run has one."""
    with replacing(folder / BUNDLE_NAME, needed=bundle.stat().st_size) as part:
        shutil.copyfile(bundle, part)
    run, sheet, scores = bundle.absolute().parent, None, dict(description.scores)
    if (run / CONFIG_NAME).is_file():
        scores |= _test_scores(run)
        sheets = [file for pattern in _SHEETS for file in sorted(run.glob(pattern))[-1:]]
        sheet = sheets[0] if sheets and not options.no_sheet else None
    if sheet is not None:
        shutil.copyfile(sheet, folder / f"sheet{sheet.suffix}")
    write_text(folder / "README.md", card(name, description, scores, options.license, sheet))


def _test_scores(run: Path) -> dict[str, float]:
    """The scores of the test of a run, by logged name."""
    try:
        content = json.loads((run / "test/localization.json").read_text(encoding="utf-8"))
        return {f"test/{name}": float(value) for name, value in content["scores"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def card(
    name: str,
    description: Description,
    scores: dict[str, float],
    license_id: str,
    sheet: Path | None = None,
) -> str:
    """The model card of a bundle: a README with the head that the hub reads.

    Args:
        name: ``ORG/NAME``.
        description: What the bundle says of the network.
        scores: By logged name; those of test are shown, without them those of val.
        license_id: Of the weights, as the hub spells it.
        sheet: A contact sheet, which lies beside the card as ``sheet`` with the same ending.
    """
    architecture, names = description.architecture or {}, description.class_names or ()
    head = {
        "license": license_id,
        "library_name": "camtrain",
        "pipeline_tag": "image-classification",
        "tags": ["camtrain", "class-activation-mapping", "weakly-supervised-localization"],
    }
    preprocessing = description.preprocessing
    height, width = preprocessing.size if preprocessing else (0, 0)
    split = next((s for s in ("test/", "val/") if any(key.startswith(s) for key in scores)), "")
    chosen = sorted(item for item in scores.items() if split and item[0].startswith(split))
    rows = "".join(f"| {key} | {value:.4g} |\n" for key, value in chosen)
    threshold = threshold_text(description.threshold)
    return f"""---
{yaml.safe_dump(head, sort_keys=False)}---

# {name}

{architecture.get("backbone", "A network")} as a class activation mapping (CAM) network: one forward
pass gives classes and heatmaps of where they are seen.

{f"![Heatmaps of some pictures](sheet{sheet.suffix})" if sheet else ""}

* Classes ({len(names)}): {join_first(names, 20)}
* Input: {width} x {height} pixels (width x height)
* Heatmaps: of {description.kind_of_maps}
* Boxes: at {threshold} of a map's maximum, {description.threshold_origin}

## Use

```python
{_loading(name, description)}
for prediction in predictor(["picture.jpg"]):
    print(prediction.names, prediction.scores, prediction.boxes[0])
    prediction.overlay().save("heatmap.png")
```

## Scores

{f"| score | value |{chr(10)}|---|---|{chr(10)}{rows}" if rows else "None were measured."}

## Limits

A heatmap shows what the score was computed from; it proves no reason. The network knows no other
classes, whatever a picture shows.
"""


def _loading(name: str, description: Description) -> str:
    """The lines of Python that load a bundle of the hub."""
    backbone = (description.architecture or {}).get("backbone")
    if not is_import_path(backbone):
        return f'import camtrain\n\npredictor = camtrain.load("hf://{name}")'
    module, _, kind = str(backbone).rpartition(".")
    load = f'camtrain.load("hf://{name}", backbone={kind})'
    return f"import camtrain\nfrom {module} import {kind}\n\npredictor = {load}"


def _listed(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir()))


def _parser() -> argparse.ArgumentParser:
    parser = VerbParser(
        prog="camtrain push",
        description="Push a bundle to the Hugging Face Hub, with a model card and a contact sheet "
        "of the run. `hf auth login` says who you are; no token is given here.",
        epilog="Example: camtrain push runs/birds ORG/birds --license mit --dry_run",
    )
    add = parser.add_argument
    add("model", metavar="RUN_OR_BUNDLE", help="the folder of a run, or a model.safetensors")
    add("name", metavar="ORG/NAME", help="the repository, which is made if need be")
    license_help = "of the weights, as the hub spells it, such as mit (default unknown)"
    add("--license", default="unknown", metavar="ID", help=license_help)
    add("--private", action="store_true", help="make a new repository private")
    add("--no_sheet", action="store_true", help="leave out the sheet, which shows your pictures")
    add("--dry_run", action="store_true", help="push nothing, write the folder instead")
    place = "the folder of --dry_run (default hub/ORG/NAME)"
    add("--output", type=Path, metavar="DIR", help=place)
    return parser
