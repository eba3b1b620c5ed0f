"""Part 4 from the pretrained checkpoint to the scores: five epochs, 200 replies by both models, BLEU and the rest."""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from benchmarks import trl_side
from benchmarks.fine_tuning import SAMPLINGS
from benchmarks.generating import LONGEST
from benchmarks.side_by_side import Measured, alternate, table, the_500_pairs
from part3_pretrain.checkpoint import load_checkpoint
from part4_sft.config import DEFAULT_CHECKPOINT, SFTConfig
from part4_sft.dataset import make_datasets
from part4_sft.encoding import PairEncoder
from part4_sft.generation import Sampling
from part4_sft.metrics import Replies, generate_replies, recognise, score
from part4_sft.training import train

AN_HOUR = 3600  # seconds: the rate of a run is told in runs an hour


def main() -> str:
    checkpoint = load_checkpoint(DEFAULT_CHECKPOINT)
    encoder = PairEncoder(checkpoint.tokenizer, eos_id=1)
    examples, pairs = the_500_pairs(checkpoint.tokenizer), make_datasets(0)["sft_test"]
    scenarios, prompts = recognise(pairs), [encoder.encode_prompt(pair.context, 300) for pair in pairs]
    outcomes: dict[str, list[float]] = {}

    def ours() -> Measured:
        start = time.perf_counter()
        model = copy.deepcopy(checkpoint.model)
        train(model, examples, SFTConfig(), after_epoch=lambda epoch, loss: None)
        both = [generate_replies(one, encoder, pairs, Sampling(), 0) for one in (checkpoint.model, model)]
        outcomes["part4_sft"] = [score(replies, pairs, scenarios)["bleu"] for replies in both]
        return Measured(time.perf_counter() - start, AN_HOUR)

    def theirs(**settings: Any) -> Measured:
        start = time.perf_counter()
        _, _, model = trl_side.fine_tune(folder, examples, num_train_epochs=SFTConfig.epochs, **settings)
        both = []
        for one in (AutoModelForCausalLM.from_pretrained(folder), model):
            written = trl_side.generate(
                one.eval(), prompts, 100, pad_id=0, do_sample=True, temperature=0.7, top_k=0, max_new_tokens=LONGEST
            )
            both.append(Replies(encoder.decode(written), [True] * len(written)))
        outcomes["TRL"] = [score(replies, pairs, scenarios)["bleu"] for replies in both]
        return Measured(time.perf_counter() - start, AN_HOUR)

    with tempfile.TemporaryDirectory() as temporary:
        folder = trl_side.export(Path(temporary) / "model", checkpoint.model, checkpoint.tokenizer)
        best = trl_side.SAME | SAMPLINGS["grouped by length"]
        found = alternate({"part4_sft": ours, "TRL + transformers": lambda: theirs(**best)}, rounds=2, warm_up=False)
    bleu = "; ".join(f"{name}: {before:.3f} before, {after:.3f} after" for name, (before, after) in outcomes.items())
    return "\n".join([table(found, "runs an hour"), "", f"BLEU of the sampled replies: {bleu}."])
