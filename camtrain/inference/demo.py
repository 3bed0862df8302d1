"""``camtrain demo``: a local page that shows the classes and heatmaps of a dropped picture."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from camtrain.arguments import VerbParser, add_backbone
from camtrain.errors import CamtrainError, CamtrainValueError, needs_extra
from camtrain.header import model_file
from camtrain.inference.prediction import Prediction
from camtrain.inference.predictor import Predictor, load
from camtrain.localization.boxes import boxes_from_heatmap
from camtrain.visualize import PREDICTED_BOX, draw_boxes

if TYPE_CHECKING:
    import gradio

LOCAL = "127.0.0.1"
MOST_MEGABYTES = 20

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
    [prediction] = predictor(path)
    return prediction


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
            raise gradio.Error(str(error)) from error
        return prediction, cards_of(prediction, threshold)

    with gradio.Blocks(title=title, analytics_enabled=False) as blocks:
        gradio.Markdown(f"# {title}")
        prediction = gradio.State(None)
        with gradio.Row():
            picture = gradio.Image(
                type="filepath", sources=["upload", "clipboard"], label="Picture"
            )
            cards = gradio.Gallery(
                label="Best classes, where they look", columns=2, object_fit="contain"
            )
        threshold = gradio.Slider(
            *(0.0, 0.999, predictor.threshold),
            step=0.001,
            label=f"Threshold of the boxes: {predictor.description.threshold_origin}",
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
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
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
    models = "a .safetensors, .ckpt, .onnx or .pt2 of camtrain, or the folder of a run"
    add("model", metavar="MODEL", help=models)
    add("--host", default=LOCAL, help=f"address to listen on (default {LOCAL}: this machine only)")
    add("--port", type=int, default=7860, help="port to listen on (default 7860)")
    add("--device", default="cpu", help="cpu, cuda, mps or auto (default cpu)")
    add_backbone(parser)
    arguments = parser.parse_args(args[1:])
    _check_address(arguments.host, arguments.port)
    model = model_file(arguments.model)
    with needs_extra("The page", extra="demo"):
        import gradio  # noqa: F401  before the network is loaded
    blocks = page(
        load(model, backbone=arguments.backbone, device=arguments.device), f"camtrain: {model}"
    )
    blocks.launch(
        server_name=arguments.host,
        server_port=arguments.port,
        max_file_size=MOST_MEGABYTES * 2**20,
        share=False,
    )
