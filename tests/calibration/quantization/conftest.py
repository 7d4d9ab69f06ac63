from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Runs torch on one thread, on which tiny products are faster."""
    usual_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual_threads)
