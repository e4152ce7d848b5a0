"""Survey every causal LM of transformers, from a checkout.

python -m survey                                    print it
python -m survey --write docs/architectures.md      write it down
python -m survey llama gpt2                         only these types
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from survey.run import all_types, survey
from survey.table import as_page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--write", type=Path, metavar="FILE")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8), metavar="N", help="processes")
    options = parser.parse_args()
    outcomes = []
    for outcome in survey(options.types or all_types(), options.jobs):
        sys.stdout.write(f"{outcome.model_type:28} {outcome.kind:10} {outcome.why}\n")
        sys.stdout.flush()
        outcomes.append(outcome)
    if options.write is not None:
        options.write.write_text(as_page(outcomes), encoding="utf-8")
    return int(any(outcome.kind in ("wrong", "impossible") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
