"""Checks that a default run shows what the README promises: python .ci/check_numbers.py outputs/evaluation.json

Exits with status 1 where a promise is broken.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> int:
    run = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    before, after, ceiling = run["pretrained"], run["sft"], run["ceiling"]
    epochs = [entry["epoch"] for entry in run["by_epoch"]]
    promises = [
        ("pretrained: rated 4.0 or more, at most 35%", before["rated_4_or_more"], before["rated_4_or_more"] <= 0.35),
        ("SFT: rated 4.0 or more, at least 99%", after["rated_4_or_more"], after["rated_4_or_more"] >= 0.99),
        ("SFT: right item, at least 99.5%", after["right_item"], after["right_item"] >= 0.995),
        ("SFT: right order number, at least 99%", after["right_order_number"], after["right_order_number"] >= 0.99),
        ("SFT: both problems, at least 95%", after["both_problems_resolved"], after["both_problems_resolved"] >= 0.95),
        ("SFT: stops by itself, at least 99.5%", after["stops_by_itself"], after["stops_by_itself"] >= 0.995),
        ("ceiling: BLEU between 0.35 and 0.75", ceiling["bleu"], 0.35 <= ceiling["bleu"] <= 0.75),
        ("epochs 3 and 5 both reported", epochs, {3, 5} <= set(epochs)),
    ]
    for measure, most_before in [("bleu", 0.60), ("rouge_l", 0.85)]:
        share_before, share_after = before[measure] / ceiling[measure], after[measure] / ceiling[measure]
        promises += [
            (f"pretrained: {measure} below {most_before:.0%} of the ceiling", share_before, share_before < most_before),
            (f"SFT: {measure} at least 95% of the ceiling", share_after, share_after >= 0.95),
        ]
    for name, least in [("unseen_wording", 0.98), ("unseen_phrase", 0.80)]:
        share = run[name]["sft"]["rated_4_or_more"]
        promises.append((f"SFT on {name}: rated 4.0 or more, at least {least:.0%}", share, share >= least))

    for promise, value, kept in promises:
        print(f"{'kept  ' if kept else 'BROKEN'} {promise}: {value if isinstance(value, list) else f'{value:.4f}'}")
    return 0 if all(kept for _, _, kept in promises) else 1


if __name__ == "__main__":
    raise SystemExit(main())
