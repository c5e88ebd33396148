import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder but for a file of the user's, and a working directory without data."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HLB_CACHE", str(folder))
    for name in ("CIFAR10", "CIFAR100", "SVHN"):
        monkeypatch.delenv(f"HLB_{name}_URL", raising=False)
    return folder


@pytest.fixture
def homeless(monkeypatch):
    """A user without a home folder and without a passwd entry, as in a container."""
    pwd = pytest.importorskip("pwd")

    def unknown(*_):
        raise KeyError("getpwuid(): uid not found: 12345")

    for name in ("HOME", "HLB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
