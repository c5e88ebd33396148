import os

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

settings.register_profile("hlb", deadline=None)
settings.load_profile("hlb")


@pytest.fixture(autouse=True)
def made_inputs_repeat():
    torch.manual_seed(0)
