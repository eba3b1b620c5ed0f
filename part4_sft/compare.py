"""A blind test: python -m part4_sft.compare

Shows two replies to a context that neither model had seen, A and B, and does not say which model wrote which. A person
says which is better; every key goes into a journal beside the replies, FILE.NAME.jsonl. In the end it tells how often
the fine-tuned model won, and how sure that is.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random
from statistics import NormalDist

from part3_pretrain.runtime.cli import OneLineParser, UserError, exit_status
from part4_sft.terminal.interview import Item, annotator, interview, journal_of, journals, login_name, replay

VOTES = {"a": "A is better", "b": "B is better", "t": "a tie"}
AUTHORS = ("pretrained", "sft")


def main() -> None:
    parser = OneLineParser(
        prog="python -m part4_sft.compare",
        description="Shows two replies to each test context, A and B, of which one is the pretrained model's and one "
        "the fine-tuned model's, takes a vote by key, and tells how often the fine-tuned model won. Votes are kept "
        "beside the file; work resumes where it stopped.",
        epilog="example: python -m part4_sft.compare outputs/replies.json --annotator anna",
    )
    default = Path("outputs/replies.json")
    help = "replies of both models, as python -m part4_sft.sft writes them (default: %(default)s)"
    parser.add_argument("file", type=Path, nargs="?", default=default, metavar="FILE", help=help)
    parser.add_argument("--annotator", type=annotator, default=login_name(), help="whose votes (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="ask nothing, only tell what the votes have come to")
    arguments = parser.parse_args()
    path = arguments.file
    authors = load_questions(path)
    if not arguments.report:
        title = f"Which reply is better? {path.name}, {arguments.annotator}"
        interview(list(authors), journal_of(path, arguments.annotator), VOTES, title, partial(_progress, len(authors)))
    votes = {
        name: tally(authors, replay(list(authors), journal, VOTES).given) for name, journal in journals(path).items()
    }
    print(summary(path, votes))


def _progress(count: int, given: dict[str, str]) -> str:
    return f"{len(given):,} of {count:,} compared"


def load_questions(path: Path) -> dict[Item, tuple[str, str]]:
    """What is asked of a file of replies, and who wrote A and who B. Replies that are the same need no vote.

    Raises UserError where the file cannot be read or holds no replies of two models.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        texts = [tuple(str.strip(entry[key]) for key in ("context", *AUTHORS)) for entry in entries]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; python -m part4_sft.sft writes it") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path} does not hold replies as python -m part4_sft.sft writes them; name another") from error
    questions = {}
    for context, *replies in texts:
        by_author = dict(zip(AUTHORS, replies))
        if len({*replies}) == 2:
            first, second = Random(repr((context, replies))).sample(AUTHORS, 2)  # the same whenever it is asked again
            parts = (("Customer", context), ("A", by_author[first]), ("B", by_author[second]))
            questions[Item(parts)] = (first, second)
    if not questions:
        raise UserError(f"{path} holds no context to which the models reply differently; there is nothing to compare")
    return questions


def tally(authors: dict[Item, tuple[str, str]], given: dict[str, str]) -> Counter[str]:
    """How many votes each author has, by name, and how many are a "tie"."""
    by_id = {item.id: dict(zip("ab", names)) for item, names in authors.items()}
    return Counter(by_id[id].get(key, "tie") for id, key in given.items())


def wilson(wins: int, votes: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a share (Wilson 1927), which is right for few votes too, and for shares near 0 and 1."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (wins + z * z / 2) / (votes + z * z)
    half = z / (votes + z * z) * (wins * (votes - wins) / votes + z * z / 4) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def summary(path: Path, votes: dict[str, Counter[str]]) -> str:
    """Each person's votes, and all of them together."""
    voted = {name: counts for name, counts in votes.items() if counts}
    if not voted:
        return f"nobody has voted on {path} yet"
    lines = [_in_words(name, counts) for name, counts in voted.items()]
    if len(voted) > 1:
        lines.append(_in_words("all", sum(voted.values(), Counter())))
    return "\n".join(lines)


def _in_words(name: str, counts: Counter[str]) -> str:
    wins, votes = counts["sft"], counts["sft"] + counts["pretrained"]
    if not votes:
        return f"{name}: {counts['tie']} ties and nothing else"
    low, high = wilson(wins, votes)
    share = f"{wins / votes:.1%} (95% interval {low:.1%} to {high:.1%})"
    return f"{name}: the fine-tuned model won {wins} of {votes} votes, {share}; {counts['tie']} ties"


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
