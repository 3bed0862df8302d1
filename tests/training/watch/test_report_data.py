"""What the report holds beside pictures."""

from camtrain.training.watch.report_data import _version_of


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert _version_of("camtrains-no-such-package") == "not installed"
    assert _version_of("torch")[0].isdigit()
