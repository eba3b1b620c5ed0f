"""A blind test: python -m part4_sft.compare

A person does not see which model wrote which reply. Every key goes into a journal beside the replies, FILE.NAME.jsonl.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from statistics import NormalDist

from part3_pretrain.runtime.cli import OneLineParser, UserError, exit_status
from part4_sft.terminal.interview import Item, interview, replay
from part4_sft.terminal.journals import annotator, journal_of, journals, login_name
from part4_sft.terminal.screen import BOLD, GAP, side_by_side, styled, wrapped

CHOICES = {"a": "A is better", "b": "B is better", "t": "a tie"}
MODELS = ("pretrained", "sft")
Questions = dict[Item, dict[str, str]]  # what is asked, and which of the models, or "tie", each key votes for


def main() -> None:
    parser = OneLineParser(
        prog="python -m part4_sft.compare",
        description="Shows two replies to each test context, A and B, of which one is the pretrained model's and one "
        "the fine-tuned model's, takes a vote by key, and tells how often the fine-tuned model won. Votes are kept "
        "beside the file; work resumes where it stopped.",
        epilog="example: python -m part4_sft.compare outputs/replies.json --annotator anna",
    )
    text = "replies of both models, as python -m part4_sft.sft writes them (default: %(default)s)"
    parser.add_argument("file", type=Path, nargs="?", default=Path("outputs/replies.json"), metavar="FILE", help=text)
    parser.add_argument("--annotator", type=annotator, default=login_name(), help="who votes (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="ask nothing, only tell what the votes have come to")
    arguments = parser.parse_args()
    path = arguments.file
    questions = load_questions(path)
    if not arguments.report and not vote(path, list(questions), arguments.annotator):
        return
    model_by_key = {item.id: keys for item, keys in questions.items()}
    votes: dict[str, dict[str, str]] = {}  # by annotator and question, the model that was chosen
    for name, journal in journals(path).items():
        if given := replay(list(questions), journal, CHOICES).given:
            votes[name] = {id: model_by_key[id][key] for id, key in given.items()}
    if len(votes) > 1:
        votes["majority"] = majority([*votes.values()])
    summaries = [summary(name, Counter(chosen.values())) for name, chosen in votes.items()]
    print("\n".join(summaries) or f"nobody has voted on {path} yet")


def vote(path: Path, items: list[Item], annotator: str) -> bool:
    """Ask for votes until the person quits, and return whether all are given.

    Where some are not, say only how many are: whoever knows which model is ahead knows whose words they read next.
    """

    def progress(given: dict[str, str]) -> str:
        return f"{len(given):,} of {len(items):,} compared"

    journal = journal_of(path, annotator)
    title = f"Which reply is better? {path.name}, {annotator}"
    interview(items, journal, CHOICES, title, progress, lay_out=with_replies_side_by_side)
    given = replay(items, journal, CHOICES).given
    if len(given) < len(items):
        print(f"{progress(given)}; which model is ahead is told once all are, or by --report")
    return len(given) == len(items)


def with_replies_side_by_side(item: Item, columns: int) -> list[str]:
    """Return the lines that show a context and below it both replies, each page as much of the one as of the other."""
    (heading, context), *replies = item.parts
    width = (columns - len(GAP)) // 2
    letters, *lines = side_by_side([f"{letter}\n{text}" for letter, text in replies], width)
    return [styled(heading, BOLD), *wrapped(context, columns), "", styled(letters, BOLD), *lines]


def load_questions(path: Path) -> Questions:
    """Read what to ask about a file of replies, always the same; where both look the same, there is nothing to choose.

    Raises UserError where the file cannot be read or holds no replies of two models.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        texts = [tuple(str.strip(entry[key]) for key in ("context", *MODELS)) for entry in entries]
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}", "python -m part4_sft.sft writes it, but not with --evaluate none"
        ) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        cause = f"{path} does not hold replies as python -m part4_sft.sft writes them"
        raise UserError(cause, "name another") from error
    questions = {}
    for number, (context, *replies) in enumerate(texts, start=1):
        if len({" ".join(reply.split()) for reply in replies}) > 1:
            (first, a), (second, b) = Random(repr((context, replies))).sample([*zip(MODELS, replies)], 2)
            item = Item((("Customer", context), ("A", a), ("B", b)), f"context {number}")
            questions[item] = {"a": first, "b": second, "t": "tie"}
    if not questions:
        raise UserError(f"{path} holds no context to which the models reply differently", "there is nothing to compare")
    return questions


def majority(votes: list[dict[str, str]]) -> dict[str, str]:
    """Return one choice a question: people who see the same replies are no independent votes."""
    chosen = {}
    for id in dict.fromkeys(id for own in votes for id in own):
        counts = Counter(own[id] for own in votes if id in own)
        lead = counts["sft"] - counts["pretrained"]
        chosen[id] = "sft" if lead > 0 else "pretrained" if lead < 0 else "tie"
    return chosen


def wilson_interval(wins: int, votes: int) -> tuple[float, float]:
    """Return the 95% confidence interval of a share of votes; right for few and near 0 and 1 too (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.975)
    centre = (wins + z * z / 2) / (votes + z * z)
    half = z / (votes + z * z) * (wins * (votes - wins) / votes + z * z / 4) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def summary(name: str, votes: Counter[str]) -> str:
    """Tell in one line of an annotator's votes, of which there is at least one."""
    wins, decided = votes["sft"], votes["sft"] + votes["pretrained"]
    if not decided:
        return f"{name}: {votes['tie']} ties and nothing else"
    low, high = wilson_interval(wins, decided)
    share = f"{wins / decided:.1%} (95% interval {low:.1%} to {high:.1%})"
    return f"{name}: the fine-tuned model won {wins} of {decided} votes, {share}; {votes['tie']} ties"


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
