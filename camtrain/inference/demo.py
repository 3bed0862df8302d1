"""``camtrain demo``: a local page that shows the classes and heatmaps of a dropped picture."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from ipaddress import ip_address
from signal import SIGTERM, signal
from typing import TYPE_CHECKING

from PIL import Image

from camtrain.arguments import VerbParser, add_backbone
from camtrain.errors import CamtrainError, CamtrainValueError, needs_extra
from camtrain.header import model_file
from camtrain.inference.hub import local_file
from camtrain.inference.prediction import Prediction
from camtrain.inference.predictor import Predictor, load
from camtrain.localization.boxes import boxes_from_heatmap
from camtrain.thresholds import DEFAULT_THRESHOLD
from camtrain.visualize import PREDICTED_BOX, draw_boxes

if TYPE_CHECKING:
    import gradio
    from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = "127.0.0.1"
MOST_MEGABYTES = 20
_LARGEST_SIDE = 2048  # of what the page shows
_KEEP = 600  # seconds, about, until an upload and its results are deleted

Cards = list[tuple[Image.Image, str]]


def cards_of(prediction: Prediction | None, threshold: float) -> Cards:
    """The overlay of each class with its boxes at this threshold, and its name and score.

    Args:
        prediction: None before the first picture.
        threshold: Part of a heatmap's maximum that the pixels of a box exceed, in [0, 1).
    """
    if prediction is None:
        return []
    cards = []
    for rank, (name, score) in enumerate(zip(prediction.names, prediction.scores, strict=True)):
        boxes_xyxy = boxes_from_heatmap(prediction.heatmaps[rank], threshold)
        picture = draw_boxes(prediction.overlay(rank), boxes_xyxy, color=PREDICTED_BOX)
        count = "1 box" if len(boxes_xyxy) == 1 else f"{len(boxes_xyxy)} boxes"
        cards.append((picture, f"{name}: {100 * score:.1f}%, {count}"))
    return cards


def predict_file(predictor: Predictor, path: str | None) -> Prediction | None:
    """The prediction of a picture's file; None where there is none."""
    if path is None:
        return None
    [prediction] = predictor(path, largest_side=_LARGEST_SIDE)
    return prediction


class KnownHosts:
    """Refuses requests under a name that is not this machine's.

    Otherwise a page of the internet whose name is made to lead to this machine could read it.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        """Take the ASGI application, and the names; addresses are allowed anyway."""
        self.app, self.names = app, {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        headers = dict(scope.get("headers", []))
        if scope["type"] in ("http", "websocket") and not self._is_known(headers.get(b"host", b"")):
            from starlette.responses import PlainTextResponse

            text = "camtrain demo: this name is not one of this machine's; open its address.\n"
            await PlainTextResponse(text, status_code=403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _is_known(self, header: bytes) -> bool:
        text = header.decode("latin-1").lower()
        host, _, port = text.rpartition(":")
        host = (host if host and port.isdecimal() else text).strip("[]")
        try:
            return bool(ip_address(host))
        except ValueError:
            return host in self.names


def page(predictor: Predictor, title: str) -> gradio.Blocks:
    """The page: a picture in, a threshold slider, and a card per class out.

    Raises:
        CamtrainValueError: Gradio is not installed.
    """
    with needs_extra("The page", extra="demo"):
        import gradio

    def predict(path: str | None, threshold: float) -> tuple[Prediction | None, Cards]:
        try:
            prediction = predict_file(predictor, path)
        except CamtrainError as error:  # one sentence on the page
            text = str(error).replace(str(path), "you dropped")
            raise gradio.Error(text, print_exception=False) from error
        return prediction, cards_of(prediction, threshold)

    with gradio.Blocks(
        title=title, analytics_enabled=False, delete_cache=(_KEEP // 10, _KEEP)
    ) as blocks:
        gradio.Markdown(f"# {title}")
        prediction = gradio.State(None)
        with gradio.Row():
            picture = gradio.Image(
                type="filepath", sources=["upload", "clipboard"], label="Picture"
            )
            cards = gradio.Gallery(
                label="Best classes, where they look", columns=2, object_fit="contain"
            )
        # Gradio itself would open the file, and say only "Error" where that fails.
        picture.preprocess = lambda upload: upload and upload.path
        start, origin = predictor.threshold, predictor.description.threshold_origin
        if start == "auto":  # a slider has one number for all heatmaps
            start, origin = DEFAULT_THRESHOLD, "the default"
        threshold = gradio.Slider(
            *(0.0, 0.999, start), step=0.001, label=f"Threshold of the boxes: {origin}"
        )
        picture.change(predict, [picture, threshold], [prediction, cards], api_name="see")
        threshold.change(cards_of, [prediction, threshold], cards, api_visibility="private")
    return blocks


def _check_address(host: str, port: int) -> None:
    """Refuse an address that nothing can listen on, before gradio and the network are loaded."""
    if not 1 <= port <= 65535:
        raise CamtrainValueError(f"--port must lie in 1..65535, got {port}.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host.encode("idna"), port), family=family).close()
    except (OSError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", error)).partition(" (while")[0]
        raise CamtrainValueError(
            "--host and --port must be an address of this machine that no other program uses, got "
            f"{host} and {port} ({reason}); give another."
        ) from error


def main(args: Sequence[str]) -> None:
    """``camtrain demo MODEL``."""
    parser = VerbParser(
        prog="camtrain demo",
        description="A page on this machine: drop a picture, see the best classes, their heatmaps "
        "and the boxes at a threshold.",
        epilog="Example: camtrain demo runs/birds/model.safetensors",
    )
    add = parser.add_argument
    models = "a .safetensors, .ckpt, .onnx or .pt2, a run's folder, or hf://ORG/NAME"
    add("model", metavar="MODEL", help=models)
    add("--host", default=LOCAL, help=f"address to listen on (default {LOCAL}: this machine only)")
    add("--port", type=int, default=7860, help="port to listen on (default 7860)")
    add("--device", default="cpu", help="cpu, cuda, mps or auto (default cpu)")
    add_backbone(parser)
    arguments = parser.parse_args(args[1:])
    host = arguments.host.strip("[]") or LOCAL
    _check_address(host, arguments.port)
    model = model_file(local_file(arguments.model))
    with needs_extra("The page", extra="demo"):
        import gradio  # noqa: F401  before the network is loaded
    predictor = load(model, backbone=arguments.backbone, device=arguments.device)
    signal(SIGTERM, lambda number, frame: sys.exit(128 + number))  # the folder below is deleted
    names = [host, "localhost", socket.gethostname(), socket.getfqdn()]
    with tempfile.TemporaryDirectory(prefix="camtrain-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # before a component is made
        page(predictor, f"camtrain: {model}").launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=arguments.port,
            max_file_size=MOST_MEGABYTES * 2**20,
            share=False,
            app_kwargs={"middleware": [(KnownHosts, (), {"names": names})]},
        )
