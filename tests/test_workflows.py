"""CI: what runs on our own machines, and whether the commands of the workflows and of .ci/run are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
HOSTED = {"ubuntu-latest", "windows-latest", "macos-latest"}  # by GitHub, for one job each
OURS_ONLY = (
    "github.event_name != 'pull_request' ||\n"
    "      github.event.pull_request.head.repo.full_name == github.repository"
)


def jobs(text: str) -> dict[str, str]:
    """The jobs of a workflow by name, as text."""
    parts = re.split(r"^  ([\w-]+):\n", text.partition("\njobs:\n")[2], flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def labels(job: str) -> set[str]:
    """The labels of the runners that a job asks for, those of its matrix included."""
    asked = re.search(r"^    runs-on: (.*)$", job, re.MULTILINE)[1]
    if variable := re.fullmatch(r"\$\{\{ matrix\.(\w+) \}\}", asked):
        asked = re.search(rf"^        {variable[1]}: (\[.*\])$", job, re.MULTILINE)[1]
    return set(re.findall(r"[\w-]+", asked))


def test_every_job_on_our_own_runners_refuses_the_code_of_a_fork():
    ours = {
        f"{path.name}: {name}": job
        for path in WORKFLOWS
        for name, job in jobs(path.read_text()).items()
        if not labels(job) <= HOSTED
    }
    assert ours
    for name, job in ours.items():
        condition = re.search(r"^    if: (?:>-\n\s+)?(.*?)\n    [a-z]", job, re.MULTILINE | re.DOTALL)
        assert condition and condition[1] == OURS_ONLY, name
        assert "persist-credentials: false" in job, name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_and_never_lends_its_rights_to_a_pull_request(path):
    text = path.read_text()
    assert "pull_request_target" not in text and "workflow_run" not in text
    assert "\npermissions:\n  contents: read\n" in text and text.count("permissions:") == 1


def test_one_job_at_a_time_has_the_gpu():
    text = (ROOT / ".github" / "workflows" / "gpu.yml").read_text()
    assert "\nconcurrency:\n  group: gpu\n  cancel-in-progress: false\n" in text


def test_labels_of_runners_are_read_also_from_a_matrix():
    assert labels("    runs-on: [self-hosted, gpu]\n") == {"self-hosted", "gpu"}
    matrix = "      matrix:\n        os: [windows-latest, mine]\n    runs-on: ${{ matrix.os }}\n"
    assert labels(matrix) == {"windows-latest", "mine"} and not labels(matrix) <= HOSTED


def test_windows_and_macos_run_tests_that_are_there_and_a_short_run():
    job = jobs((ROOT / ".github" / "workflows" / "cpu.yml").read_text(encoding="utf-8"))["platforms"]
    assert labels(job) == {"windows-latest", "macos-latest"} and "fail-fast: false" in job
    tests = re.findall(r"tests/[\w/.]+", job)
    assert len(tests) > 5 and all((ROOT / name).exists() for name in tests)
    assert "hlb --recipe smoke --data synthetic" in job
