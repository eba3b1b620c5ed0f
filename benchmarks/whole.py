"""Part 4 from the pretrained checkpoint to the scores: five epochs, 200 replies by both models, BLEU and the rest."""

from __future__ import annotations

import copy
import time
from dataclasses import replace

from transformers import AutoModelForCausalLM

from benchmarks import our_side, trl_side
from benchmarks.fine_tuning import GROUPED
from benchmarks.side_by_side import Measured, alternate, table
from part4_sft.dataset import make_datasets
from part4_sft.evaluation import generate_replies
from part4_sft.generation import Sampling
from part4_sft.metrics import Replies, recognise_all, score

CONFIG = replace(our_side.CONFIG, epochs=5)  # as many pairs a step as TRL takes here
AN_HOUR = 3600  # seconds: the rate of a run is told in runs an hour
THEIR_BATCH_SIZE = 100  # replies that transformers writes at once


def main() -> str:
    model, encoder = our_side.load_model()
    examples, pairs = our_side.encode_good_pairs(encoder), make_datasets(0)["sft_test"]
    scenarios, prompts = recognise_all(pairs), our_side.encode_prompts(encoder, pairs)
    bleu: dict[str, list[float]] = {}

    def measure_ours() -> Measured:
        start = time.perf_counter()
        trained = copy.deepcopy(model)
        our_side.fine_tune(trained, examples, CONFIG)
        replies = [generate_replies(one, encoder, pairs, Sampling(), 0) for one in (model, trained)]
        bleu["part4_sft"] = [score(of_model, pairs, scenarios)["bleu"] for of_model in replies]
        return Measured(time.perf_counter() - start, AN_HOUR)

    def measure_theirs() -> Measured:
        start = time.perf_counter()
        _, _, trained = trl_side.fine_tune(
            folder, examples, batch_size=CONFIG.batch_size, num_train_epochs=CONFIG.epochs, **GROUPED
        )
        bleu["TRL"] = []
        for one in (AutoModelForCausalLM.from_pretrained(folder), trained):
            texts = encoder.decode(trl_side.generate(one.eval(), prompts, Sampling(), THEIR_BATCH_SIZE))
            bleu["TRL"].append(score(Replies(texts, [True] * len(texts)), pairs, scenarios)["bleu"])
        return Measured(time.perf_counter() - start, AN_HOUR)

    with trl_side.exported(model, encoder.tokenizer) as folder:
        sides = {"part4_sft": measure_ours, "TRL + transformers": measure_theirs}
        runs = alternate(sides, rounds=2, warm_up=False)
    scores = "; ".join(f"{name}: {before:.3f} before, {after:.3f} after" for name, (before, after) in bleu.items())
    return "\n".join([table(runs, "runs an hour"), "", f"BLEU of the sampled replies: {scores}."])
