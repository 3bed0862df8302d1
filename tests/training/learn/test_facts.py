"""What a network knows of its data: given, read from the data, or assumed with a warning."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import camtrain
from camtrain.cli import main
from camtrain.errors import CamtrainError
from camtrain.inference.bundle import write_bundle
from camtrain.preprocessing import Preprocessing
from camtrain.training import CAMModule, fit
from tests.conftest import fit_of
from tests.training.conftest import quiet_trainer, small_module

GIVEN = Preprocessing(size=(24, 32), mean=(0.5,) * 3, std=(0.25,) * 3, resize_mode="pad")


class Silent(LightningDataModule):
    """Somebody's own data module, which says nothing of its pictures."""

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Eight pictures of two classes."""
        images = torch.randn(8, 3, 24, 32, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(images, torch.arange(8) % 2), batch_size=4)

    val_dataloader = train_dataloader


def fit_silently(module: CAMModule, folder: Path, data: LightningDataModule | None = None) -> None:
    settings: dict[str, Any] = {"enable_progress_bar": False, "accelerator": "cpu"}
    fit(
        *(module, data or Silent()),
        **{"folder": folder, "logger": "none", "trainer": {"max_epochs": 1, **settings}},
    )


def test_what_is_assumed_is_said_at_the_start_and_at_saving(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_silently(small_module(), tmp_path / "run")
    told = [
        str(warning.message) for warning in caught if "neither the data" in str(warning.message)
    ]
    assert told[0].startswith("The checkpoints and bundles of this training will say that")
    assert told[1].startswith("The checkpoint says that")
    for sentence in told:
        assert "the classes are called 0, 1" in sentence
        assert "pictures are prepared by Preprocessing(size=(64, 64)" in sentence
        assert "give CAMModule class_names and preprocessing, or your data module" in sentence


@pytest.mark.parametrize("values", [GIVEN, GIVEN.to_dict()])
def test_what_is_given_reaches_checkpoint_and_bundle_without_a_warning(
    values: Preprocessing | dict[str, Any], tmp_path: Path
) -> None:
    module = small_module(class_names=("cat", "dog"), preprocessing=values, num_classes=None)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*neither the data")
        fit_silently(module, tmp_path / "run")
    bundle = camtrain.load(tmp_path / "run" / "model.safetensors").net
    assert bundle is not None
    assert (bundle.class_names, bundle.preprocessing) == (("cat", "dog"), GIVEN)
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    plain = torch.load(best, weights_only=True)["hyper_parameters"]
    assert plain["class_names"] == ["cat", "dog"]
    assert plain["preprocessing"] == GIVEN.to_dict()
    again = CAMModule.load_from_checkpoint(best)
    assert (again.net.class_names, again.net.preprocessing) == (("cat", "dog"), GIVEN)


class Speaking(Silent):
    """The same with the attributes of torchvision's data sets and ours."""

    classes = ("cat", "dog")
    preprocessing = GIVEN


def test_attributes_of_the_data_are_read() -> None:
    module = small_module()
    module.follow_data(Speaking())
    assert (module.net.class_names, module.net.preprocessing) == (("cat", "dog"), GIVEN)


def test_a_transform_of_the_data_is_not_taken_for_a_preprocessing() -> None:
    data, module = Silent(), small_module()
    data.preprocessing = lambda picture: picture  # type: ignore[attr-defined]  # somebody's own
    usual = module.net.preprocessing
    module.follow_data(data)
    assert module.net.preprocessing == usual


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"class_names": ["dog", "cat"]},
            r"class_names must be that of the data, \('cat', 'dog'\)",
        ),
        ({"preprocessing": Preprocessing()}, "preprocessing must be that of the data"),
        ({"class_names": ["cat"]}, "class_names must hold one name for each of the 2 classes"),
        ({"preprocessing": Preprocessing(mean=(0.5,), std=(1,))}, "in_chans=3 channels"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CamtrainError, match=message):
        small_module(**settings).follow_data(Speaking())


def test_yaml_gives_them_too(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = "{size: [32, 32], mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}"
    config = tmp_path / "mine.yaml"
    config.write_text(f"model: {{class_names: [blue, red], preprocessing: {values}}}")
    arguments = fit_of(photographs, tmp_path / "runs", "--trainer.max_epochs", "1")
    assert main([*arguments, "--config", str(config)]) == 0
    run = tmp_path / "runs" / "run"
    predictor = camtrain.load(run / "model.safetensors")
    assert predictor.preprocessing.mean == (0.5, 0.5, 0.5)
    assert main(["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]) == 0
    assert main([*arguments, "--config", str(config), "--ckpt_path", "last"]) == 0
    assert main([*arguments, "--overwrite", "--config", str(config), "--data.size", "48"]) == 2
    error = capsys.readouterr().err
    assert (
        "--model.preprocessing must be that of the data, size (48, 48), got size (32, 32)" in error
    )


def bundle_of(folder: Path, names: tuple[str, ...], **settings: Any) -> Path:
    net = camtrain.create_model(
        "camtrain/digits", len(names), **{"backbone_args": {"width": 4}, "neck": (), **settings}
    )
    net.name_classes(names)
    write_bundle(folder / "model.safetensors", net)
    return folder / "model.safetensors"


class Named(Silent):
    """Data whose classes have these names."""

    preprocessing = GIVEN

    def __init__(self, names: tuple[str, ...] | None) -> None:
        super().__init__()
        self.class_names = names


NECK = {"neck": (4,)}
HEADS: dict[str, tuple[dict[str, Any], tuple[str, ...] | None, list[int] | None, str]] = {
    "same classes": (NECK, ("a", "b", "c"), [0, 1, 2], "is kept, with its classes a, b, c"),
    "another order": (NECK, ("c", "a", "b"), [2, 0, 1], "is kept, with its classes c, a, b"),
    "order, no neck": ({}, ("b", "a", "c"), [1, 0, 2], "is kept, with its classes b, a, c"),
    "no names": (NECK, None, [0, 1, 2], "is kept, with its classes a, b, c"),
    "other classes": (NECK, ("a", "b", "x"), None, "knows the classes a, b, c, and the data has a"),
    "other, no neck": ({}, ("a", "b", "x"), None, "A new head begins, in place of the trained"),
    "fewer classes": (NECK, ("a", "b"), None, "A new head begins"),
    "another neck": ({"neck": (6,)}, ("a", "b", "c"), None, "its neck is another"),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_trained_head_is_kept_for_the_same_classes_and_one_line_says_so(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, names, order, line = HEADS[case]
    bundle = bundle_of(tmp_path, ("a", "b", "c"), **({} if not settings else NECK))
    module = small_module(weights=bundle, num_classes=len(names or "abc"), **settings)
    trained = load_file(bundle)
    quiet_trainer(max_epochs=0).fit(module, Named(names))
    [said] = [line for line in capsys.readouterr().out.splitlines() if "trained head" in line]
    assert re.search(line, said)
    assert str(bundle) in said
    head = module.net.head
    assert module.net.class_names == (names or ("a", "b", "c"))
    if order is None:
        is_kept = head.weight.shape == trained["head.weight"].shape and torch.equal(
            head.weight, trained["head.weight"]
        )
        assert not is_kept
    else:
        assert torch.equal(head.weight, trained["head.weight"][order])
        assert torch.equal(head.bias, trained["head.bias"][order])


def test_a_second_training_does_not_begin_with_the_head_of_the_bundle_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundle_of(tmp_path, ("a", "b"))
    module, data = small_module(weights=bundle), Named(("a", "b"))
    quiet_trainer(max_epochs=1).fit(module, data)
    trained = module.net.head.weight.clone()
    module.follow_data(data)
    assert torch.equal(module.net.head.weight, trained)
    assert not torch.equal(trained, load_file(bundle)["head.weight"])


def test_frozen_first_then_all_of_it_goes_on_where_it_was(
    fitted_once: Callable[..., Path],
    fit_arguments: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    frozen = (
        fitted_once("--model.freeze_backbone", "true", "--model.neck", "[4]") / "model.safetensors"
    )
    more = ("--model.neck", "[4]", "--model.lr", "1e-9", "--trainer.max_epochs", "1")
    assert main(fit_arguments("--model.weights", str(frozen), *more)) == 0
    assert f"The trained head of {frozen} is kept" in capsys.readouterr().out
    whole = camtrain.load(tmp_path / "runs" / "run" / "model.safetensors").net
    assert whole is not None
    trained = load_file(frozen)
    assert torch.allclose(whole.head.weight, trained["head.weight"], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": "balanced"}, "class_weights=balanced needs the labels of all training"),
        (
            {"preprocessing": {"mean": [0.5], "std": [0.5]}},
            "mean must hold one number for each of the in_chans=3 channels",
        ),
    ],
)
def test_what_does_not_fit_the_data_is_refused_before_anything_is_written(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CamtrainError, match=message):
        fit_silently(small_module(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pictures_of_two_channels_leave_no_folder(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit_of(photographs, tmp_path / "runs", "--model.in_chans", "2")) == 2
    error = capsys.readouterr().err
    assert (
        "takes pictures of 2 channels, and those of the data have 3; give --model.in_chans 3."
        in error
    )
    assert not (tmp_path / "runs").exists()
