"""Survey every causal LM of transformers, and every model of images and text, from a checkout.

python -m survey                                    print it
python -m survey --write docs/architectures.md      write it down
python -m survey llama gpt2                         only these types; written, the page keeps what it says of others
python -m survey --images llava qwen2_vl            only these, with images
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from survey.examine import Outcome
from survey.images import all_seeing_types
from survey.run import all_types, survey
from survey.table import as_page, merged


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--write", type=Path, metavar="FILE")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8), metavar="N", help="processes")
    parser.add_argument("--images", action="store_true", help="the types are of models of images and text")
    options = parser.parse_args()
    outcomes = [] if options.images else _outcomes(options.types or all_types(), options.jobs)
    images = options.images or not options.types
    seeing = _outcomes(options.types or all_seeing_types(), options.jobs, seeing=True) if images else []
    if options.write is not None:
        page = options.write.read_text(encoding="utf-8") if options.types and options.write.exists() else ""
        written = as_page(merged(page, outcomes), merged(page, seeing, seeing=True))
        options.write.write_text(written, encoding="utf-8")
    wrong = any(outcome.kind == "wrong" for outcome in [*outcomes, *seeing])
    return int(wrong or any(outcome.kind == "impossible" for outcome in outcomes))


def _outcomes(types: Sequence[str], jobs: int, *, seeing: bool = False) -> list[Outcome]:
    outcomes = []
    for outcome in survey(types, jobs, seeing=seeing):
        sys.stdout.write(f"{outcome.model_type:28} {outcome.kind:10} {outcome.why}  {outcome.trained}\n")
        sys.stdout.flush()
        outcomes.append(outcome)
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
