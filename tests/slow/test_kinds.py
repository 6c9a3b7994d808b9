"""Models of different kinds through all stages, from the command line: what they share is no more than the checks."""

import pytest

from infra.folder import STAGES, Run


@pytest.mark.parametrize("family", "lfm2 falconh1 qwen3next bloom gptneo opt mixtral gemma3".split())
def test_all_stages(tiny, call, tmp_path, family):
    assert call(tmp_path, "--warmup", "1", model=tiny(family)) == 0
    assert set(Run(tmp_path).stages()) == set(STAGES)
