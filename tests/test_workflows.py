"""CI: what runs on our own machines, and whether the commands of the workflows and of .ci/run are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
OURS_ONLY = (
    "github.event_name != 'pull_request' ||\n"
    "      github.event.pull_request.head.repo.full_name == github.repository"
)


def jobs(text: str) -> dict[str, str]:
    """The jobs of a workflow by name, as text."""
    parts = re.split(r"^  ([\w-]+):\n", text.partition("\njobs:\n")[2], flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def test_every_job_on_our_own_runners_refuses_the_code_of_a_fork():
    ours = {
        f"{path.name}: {name}": job
        for path in WORKFLOWS
        for name, job in jobs(path.read_text()).items()
        if "runs-on: ubuntu-latest" not in job
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
