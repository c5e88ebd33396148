import pytest
import torch
from hypothesis import settings

settings.register_profile("hlb", deadline=None)
settings.load_profile("hlb")


@pytest.fixture(autouse=True)
def made_inputs_repeat():
    torch.manual_seed(0)
