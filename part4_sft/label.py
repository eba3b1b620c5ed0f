"""A person rates replies from the keyboard: python -m part4_sft.label FILE

Shows one pair at a time and takes a rating from 1 to 5. Every key goes into a journal beside the file,
FILE.NAME.jsonl; at the end the ratings are folded into the file: "high_quality" becomes 1 where the mean of the
annotators' ratings is 4 or more. Of two or more annotators it tells how well they agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean, pvariance
from textwrap import shorten

from part3_pretrain.retail.rubric import HIGH_QUALITY
from part3_pretrain.runtime.cli import OneLineParser, exit_status
from part3_pretrain.runtime.files import locked
from part4_sft.dataset import Pair
from part4_sft.formats import load_pairs, relabel
from part4_sft.terminal.interview import Item, annotator, interview, journal_of, journals, login_name, replay

RATINGS = {"1": "wrong", "2": "poor", "3": "usable", "4": "good", "5": "ideal"}
SHOWN, LONGEST_SHOWN = 10, 300  # disagreements in a report, and characters of a text there
Ratings = dict[str, int]  # one annotator's, by `Item.id`


def main() -> None:
    parser = OneLineParser(
        prog="python -m part4_sft.label",
        description="Rates the replies of a file of pairs, one at a time: 1 wrong (another item, another problem), "
        "2 poor, 3 usable, 4 good, 5 ideal (acknowledges the customer, names the item, resolves each problem, says "
        "what happens next). Pairs with a rating (of several people: a mean) of 4 or more get high_quality 1, those "
        "below 0; those not rated keep what they have, or get 0 where the file had no labels. Work resumes where it "
        "stopped.",
        epilog="example: python -m part4_sft.label outputs/sft_dataset.json --annotator anna",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="JSON, JSONL or CSV file of pairs")
    parser.add_argument(
        "--annotator", type=annotator, default=login_name(), help="whose ratings (default: %(default)s)"
    )
    parser.add_argument("--report", action="store_true", help="rate nothing, only tell how well annotators agree")
    arguments = parser.parse_args()
    path, name = arguments.file, arguments.annotator
    items = list(dict.fromkeys(item_of(pair) for pair in load_pairs(path)))
    if arguments.report:
        print(summary(path, items, all_ratings(path, items)))
        return
    try:
        title = f"{path.name}, rated by {name}"
        interview(items, journal_of(path, name), RATINGS, title, partial(_progress, len(items)))
    finally:
        rated = all_ratings(path, items)
        if any(rated.values()):
            fold(path, rated)
    print(summary(path, items, {name: rated[name]}))  # nobody should see the others' ratings before theirs are done


def item_of(pair: Pair) -> Item:
    return Item((("Customer", pair.context), ("Reply", pair.response)))


def _progress(count: int, given: Mapping[str, str | int]) -> str:
    good = sum(int(rating) >= HIGH_QUALITY for rating in given.values())
    return f"{len(given):,} of {count:,} rated, {good:,} of them 4 or 5"


def all_ratings(path: Path, items: list[Item]) -> dict[str, Ratings]:
    """What the keys in each annotator's journal have come to."""
    return {
        name: {id: int(key) for id, key in replay(items, journal, RATINGS).given.items()}
        for name, journal in journals(path).items()
    }


def fold(path: Path, rated: dict[str, Ratings]) -> None:
    """Writes the ratings into the file, and says what it holds now."""

    def label(pair: Pair) -> int | None:
        id = item_of(pair).id
        ratings = [ratings[id] for ratings in rated.values() if id in ratings]
        return int(fmean(ratings) >= HIGH_QUALITY) if ratings else None

    with locked(path.parent):
        labels = relabel(path, label)
    good = sum(labels)
    print(f"written: {path}; pairs that train (high_quality 1): {good:,}; that do not (0): {len(labels) - good:,}")


# ---------------------------------------------------------------------------------------------------- agreement


def weighted_kappa(first: list[int], second: list[int]) -> float | None:
    """Agreement of two annotators beyond chance, at most 1 (Cohen 1968), where a difference weighs by its square.

    None where it is not defined: both gave one rating and the same to everything.
    """
    observed = fmean((a - b) ** 2 for a, b in zip(first, second))
    by_chance = pvariance(first) + pvariance(second) + (fmean(first) - fmean(second)) ** 2  # mean over all (a, b)
    return 1 - observed / by_chance if by_chance else None


def agreement(first: Ratings, second: Ratings) -> tuple[float | None, list[str]]:
    """The weighted kappa over what both have rated, and the ids of it, those most disagreed on first."""
    both = sorted((id for id in first if id in second), key=lambda id: -abs(first[id] - second[id]))
    return weighted_kappa([first[id] for id in both], [second[id] for id in both]) if both else None, both


def summary(path: Path, items: list[Item], rated: dict[str, Ratings]) -> str:
    """What has been rated, by whom, and how well they agree."""
    if not any(rated.values()):
        return f"no pair of {path} is rated yet"
    by_id = {item.id: item for item in items}
    lines = [f"{name}: {_progress(len(items), ratings)}" for name, ratings in rated.items()]
    for first, second in combinations(rated, 2):
        kappa, both = agreement(rated[first], rated[second])
        same = sum(rated[first][id] == rated[second][id] for id in both)
        lines.append(f"\n{first} and {second} have both rated {len(both):,}, {same:,} alike")
        lines[-1] += "" if kappa is None else f"; weighted kappa {kappa:.2f} (1: as one, 0: as by chance)"
        differ = [id for id in both if rated[first][id] != rated[second][id]]
        if differ:
            lines.append(f"they differ on {len(differ):,}" + ("; most on these:" if differ[SHOWN:] else ":"))
        for id in differ[:SHOWN]:
            lines.append(f"\n  {first} {rated[first][id]}, {second} {rated[second][id]}")
            lines += [f"  {heading}: {shorten(text, LONGEST_SHOWN)}" for heading, text in by_id[id].parts]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
