"""Write the options of ``vllm serve`` and their choices to vllm_options.json; run where vllm is installed.

Left out: whether a script's options are among them (``tests/promises/test_cluster.py``).
"""

import argparse
import json
from pathlib import Path

FIXTURE = Path(__file__).with_name("vllm_options.json")


def main() -> None:
    import vllm
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: argparse.ArgumentParser = make_arg_parser(FlexibleArgumentParser())
    options = {
        option: sorted(map(str, action.choices or [])) for action in parser._actions for option in action.option_strings
    }
    record = {"vllm": vllm.__version__, "options": dict(sorted(options.items()))}
    FIXTURE.write_text(json.dumps(record, indent=0) + "\n", encoding="utf-8")
    print(f"{len(options)} options -> {FIXTURE}")


if __name__ == "__main__":
    main()
