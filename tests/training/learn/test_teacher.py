"""Learning where to look from the refined maps of a first network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer

from camtrain import Predictor, Preprocessing, cli
from camtrain.errors import CamtrainError
from camtrain.training import CAMDataModule
from camtrain.training.cache import FeatureDataset
from camtrain.training.cache.store import hash_of_tensors
from camtrain.training.learn.teacher import Teacher, map_disagreement
from tests.training.conftest import quiet_trainer, small_module


@pytest.fixture
def teacher(photographs: Path, tmp_path: Path) -> Path:
    """The bundle of a network that was trained on the photographs."""
    torch.manual_seed(0)
    module = small_module()
    data = CAMDataModule(root=photographs, size=32, batch_size=8, workers=0)
    quiet_trainer(max_epochs=4, limit_val_batches=0).fit(module, data)
    path = tmp_path / "teacher.safetensors"
    Predictor(module.net.eval()).save(path)
    return path


def taught(root: Path, teacher: Path, epochs: int = 4, **settings: Any) -> Trainer:
    data = {"augment": "flip", **settings.pop("data", {})}
    module = small_module(neck=(4,), teacher=str(teacher), **settings)
    trainer = quiet_trainer(max_epochs=epochs, limit_val_batches=0)
    trainer.fit(module, CAMDataModule(root=root, size=32, batch_size=8, workers=0, **data))
    return trainer


def disagreement(trainer: Trainer, teacher: Path, root: Path) -> float:
    """Mean over the training pictures."""
    data = CAMDataModule(root=root, size=32, batch_size=16, workers=0, augment="none")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    net, master = trainer.lightning_module.net.eval(), Teacher(teacher)
    with torch.no_grad():
        maps = net.class_maps(batch.images, classes=batch.labels).maps[:, 0]
        targets = master.maps(master.net.backbone_output(batch.images), batch.labels)
    return float(map_disagreement(maps, targets).mean())


def test_maps_come_nearer_to_the_teachers(photographs: Path, teacher: Path) -> None:
    settings = {"lr": 0.01, "data": {"augment": "none"}}
    torch.manual_seed(0)
    little = taught(photographs, teacher, epochs=25, teacher_weight=1e-9, **dict(settings))
    torch.manual_seed(0)
    much = taught(photographs, teacher, epochs=25, teacher_weight=5.0, **dict(settings))
    before = disagreement(little, teacher, photographs)
    after = disagreement(much, teacher, photographs)
    assert after < 0.7 * before, (before, after)


def test_a_common_frozen_backbone_sees_each_picture_once(photographs: Path, teacher: Path) -> None:
    trainer = taught(photographs, teacher, freeze_backbone=True, weights=str(teacher))
    assert isinstance(trainer.train_dataloader.dataset, FeatureDataset)
    kept = trainer.lightning_module.net
    assert all(
        torch.equal(tensor, Teacher(teacher).net.state_dict()[name])
        for name, tensor in kept.state_dict().items()
        if name.startswith("backbone.")
    )


def test_kept_features_teach_what_pictures_teach(photographs: Path, teacher: Path) -> None:
    losses = []
    for cached in (True, False):
        torch.manual_seed(0)
        trainer = taught(
            photographs,
            teacher,
            freeze_backbone=True,
            weights=str(teacher),
            data={"cache_features": cached},
        )
        assert isinstance(trainer.train_dataloader.dataset, FeatureDataset) == cached
        losses.append(float(trainer.callback_metrics["train/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_a_backbone_of_another_stride_is_another_one(photographs: Path, teacher: Path) -> None:
    trainer = taught(
        photographs, teacher, freeze_backbone=True, weights=str(teacher), stride=2, epochs=1
    )
    net, master = trainer.lightning_module.net, Teacher(teacher)
    assert hash_of_tensors(net.backbone) == hash_of_tensors(master.net.backbone)
    assert not master.has_backbone_of(net)
    assert master.has_backbone_of(master.net)


@pytest.mark.nightly
def test_a_training_goes_on_with_the_teacher_that_it_had(
    fit_arguments: Callable[..., list[str]],
    teacher: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = fit_arguments("--model.teacher", str(teacher))
    assert cli.main(arguments) == 0
    again = [*arguments, "--ckpt_path", "last", "--trainer.max_epochs", "3"]
    assert cli.main(again) == 0
    other = Teacher(teacher).net
    with torch.no_grad():
        other.head.weight += 1.0
    Predictor(other).save(teacher)
    again[-1] = "4"
    assert cli.main(again) == 2
    assert "the weights of the teacher it began with" in capsys.readouterr().err


def test_a_teacher_without_class_names() -> None:
    one, other = small_module().net, small_module().net
    path_less = Teacher.__new__(Teacher)
    path_less.net, path_less.path = one, Path("nowhere")
    one.preprocessing = Preprocessing((32, 32), (0.5,) * 3)
    other.preprocessing = None
    one.name_classes(["0", "1"])
    path_less.check(other)


def test_a_map_without_contrast_does_not_explode() -> None:
    targets = torch.rand(1, 4, 5)
    for maps in (torch.zeros(1, 4, 5), 1e-7 * torch.rand(1, 4, 5)):
        maps.requires_grad_(True)
        map_disagreement(maps, targets).sum().backward()
        assert maps.grad is not None
        assert float(maps.grad.abs().max()) < 1e3


def test_another_backbone_is_not_kept(photographs: Path, teacher: Path) -> None:
    trainer = taught(photographs, teacher, freeze_backbone=True)
    assert not isinstance(trainer.train_dataloader.dataset, FeatureDataset)
    with pytest.raises(CamtrainError, match="the teacher has another backbone"):
        taught(photographs, teacher, freeze_backbone=True, data={"cache_features": True})


def test_the_teacher_is_no_part_of_what_is_shipped(photographs: Path, teacher: Path) -> None:
    trainer = taught(photographs, teacher, epochs=1)
    names = trainer.lightning_module.state_dict()
    assert not any("teacher" in name for name in names)
    assert len([name for name in names if name.startswith("net.head")]) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cutmix": 1.0}, "one true class of each picture, step by step, got cutmix 1.0"),
        ({"mixup": 0.2}, "got mixup 0.2"),
        ({"task": "multilabel"}, "got task multilabel"),
        ({"compile": True}, "got compile True"),
        ({"teacher_weight": 0.0}, "teacher_weight must be above 0, got 0.0"),
    ],
)
def test_what_cannot_be_taught(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CamtrainError, match=message):
        small_module(teacher="nobody.safetensors", **settings)


def test_a_teacher_of_other_classes(photographs: Path, tmp_path: Path, teacher: Path) -> None:
    other = Teacher(teacher).net
    other.name_classes(["cat", "dog"])
    path = tmp_path / "other.safetensors"
    Predictor(other).save(path)
    with pytest.raises(CamtrainError, match=r"must have the classes .*got \['cat', 'dog'\]"):
        taught(photographs, path)
    with pytest.raises(CamtrainError, match=r"No bundle at .*nobody.safetensors"):
        taught(photographs, tmp_path / "nobody.safetensors")
