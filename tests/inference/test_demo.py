"""The page shows what the predictor says, on this machine only."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import camtrain
from camtrain import Predictor, cli
from camtrain.errors import CamtrainValueError
from camtrain.inference import demo


@pytest.fixture
def predictor() -> Predictor:
    torch.manual_seed(0)
    net = camtrain.create_model("camtrain/digits", 7, neck=(), backbone_args={"width": 2})
    return Predictor(net, threshold=0.3)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_card_is_the_overlay_with_the_boxes_of_the_threshold(
    predictor: Predictor, picture: Path
) -> None:
    seen = demo.predicted(predictor, str(picture))
    assert seen is not None
    cards = demo.cards_of(seen, 0.3)
    assert len(cards) == 5
    for rank, (drawn, text) in enumerate(cards):
        assert drawn.size == (60, 40)
        count = len(seen.boxes[rank])
        assert text.startswith(f"{seen.names[rank]}: {100 * seen.scores[rank]:.1f}%, {count} box")
        assert np.asarray(drawn).tobytes() != np.asarray(seen.overlay(rank)).tobytes()
    higher = demo.cards_of(seen, 0.9)
    assert higher[0][0].tobytes() != cards[0][0].tobytes()
    assert demo.predicted(predictor, None) is None
    assert demo.cards_of(None, 0.3) == []


def test_without_gradio_it_says_what_to_install(
    predictor: Predictor,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(CamtrainValueError, match=r"pip install 'camtrain\[demo\]'"):
        demo.page(predictor, "title")
    assert cli.main(["demo", str(picture)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_the_page_answers_on_this_machine_and_refuses_large_files(
    predictor: Predictor, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradio = pytest.importorskip("gradio", reason="the extra `demo` is not installed")
    client = pytest.importorskip("gradio_client", reason="the extra `demo` is not installed")
    predictor.save(tmp_path / "model.safetensors")
    launched: dict[str, object] = {}
    launch = gradio.Blocks.launch

    def launch_and_return(blocks: object, **settings: object) -> None:
        launched.update(settings, blocks=blocks)
        launch(blocks, **settings, prevent_thread_lock=True, quiet=True)

    monkeypatch.setattr(gradio.Blocks, "launch", launch_and_return)
    assert cli.main(["demo", str(tmp_path / "model.safetensors"), "--port", "7999"]) == 0
    blocks = launched["blocks"]
    try:
        assert launched["server_name"] == "127.0.0.1"
        assert launched["share"] is False
        page = client.Client("http://127.0.0.1:7999", verbose=False)
        cards = page.predict(client.handle_file(picture), 0.3, api_name="/see")
        assert len(cards) == 5
        large = tmp_path / "large.png"
        large.write_bytes(picture.read_bytes() + bytes((demo.MOST_MEGABYTES + 1) * 2**20))
        with pytest.raises(Exception, match=r"(?i)size|large|413"):
            page.predict(client.handle_file(large), 0.3, api_name="/see")
    finally:
        blocks.close()
