"""What runs where: the nightly sample, and the jobs of a public home."""

import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.conftest import SHARE, everyday, sample

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def test_a_sample_is_that_of_its_seed() -> None:
    cases = list(range(57))
    assert sample(cases, "a commit") == sample(cases, "a commit") != sample(cases, "another")


@pytest.mark.parametrize("count", [1, 3, 10, 57])
def test_every_nightly_test_comes_about_once_in_ten_commits(count: int) -> None:
    commits = 2000
    samples = [sample(list(range(count)), f"commit {number}") for number in range(commits)]
    assert {len(chosen) for chosen in samples} <= {count // SHARE, count // SHARE + 1}
    times = Counter(case for chosen in samples for case in chosen)
    assert all(times[case] == pytest.approx(commits / SHARE, rel=0.3) for case in range(count))


def test_of_very_many_cases_a_smaller_share_is_taken() -> None:
    assert {len(sample(list(range(1457)), str(seed), 24)) for seed in range(20)} == {60, 61}


def test_only_the_chosen_cases_run_every_day() -> None:
    first, second = everyday([("a", 1), ("b", 2)], ("b", 2))
    assert first == pytest.param("a", 1, marks=pytest.mark.nightly)
    assert second == ("b", 2)


def test_ci_samples_by_the_commit() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert 'python -m pytest -n 2 --sample "$(git rev-parse HEAD)"' in script


@pytest.mark.parametrize("name", ["run", "oldest"])
def test_a_script_is_one_that_bash_understands_and_can_be_run(name: str) -> None:
    script = ROOT / ".ci" / name
    assert script.stat().st_mode & 0o100
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "set -euo pipefail" in script.read_text()


def test_a_public_home_runs_the_same_scripts() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    commands = {
        name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()
    }
    assert set(jobs) == {"run", "newest", "oldest", "without-extras"}
    assert "bash .ci/run" in commands["run"]
    assert commands["oldest"] == ["bash .ci/oldest"]
    assert not any("[" in command for command in commands["without-extras"])
    for job in jobs.values():
        assert job["runs-on"] == "ubuntu-latest"
        assert job["timeout-minutes"] <= 60
        assert job["steps"][0]["uses"].startswith("actions/checkout@")


def test_a_public_home_tries_every_python_there_is() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    versions = jobs["newest"]["strategy"]["matrix"]["python-version"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    first = project["requires-python"].removeprefix(">=")
    assert versions == [f"3.{minor}" for minor in range(int(first[2:]), 15)]
    [python] = [s["with"] for s in jobs["oldest"]["steps"] if "setup-python" in s.get("uses", "")]
    assert python["python-version"] == first
