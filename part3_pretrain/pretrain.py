"""Pretrains the base model: python -m part3_pretrain.pretrain

Writes `checkpoints/pretrained.pt` and `outputs/pretraining_loss_curve.png`. Takes about five minutes on two CPU cores.
"""

from __future__ import annotations

from dataclasses import asdict
from hashlib import sha256

from part3_pretrain.command_line import exit_status, parse
from part3_pretrain.config import PretrainConfig
from part3_pretrain.files import check_free, locked

DECIDE_NOTHING = {"checkpoint", "out_dir", "corpus", "save_every", "resume"}  # settings; the corpus itself decides


def main() -> None:
    config = parse(
        PretrainConfig,
        prog="python -m part3_pretrain.pretrain",
        description="Pretrains a small Llama-style model on synthetic retail conversations, or on your own text files.",
        example="python -m part3_pretrain.pretrain --corpus notes.txt letters.txt --checkpoint checkpoints/mine.pt",
    )
    with locked(config.checkpoint.parent, config.out_dir):
        from part3_pretrain.parallel import joined  # only now, since torch takes seconds to import

        with joined(config.shard):
            run_pretraining(config)


def run_pretraining(config: PretrainConfig) -> None:
    """Reads or makes the corpus, trains the model and writes checkpoint and loss curve.

    Raises:
        UserError: a text file cannot be read or holds too little, a file cannot be written, or what --resume finds
            is of another run.
    """
    from part3_pretrain import parallel
    from part3_pretrain.checkpoint import Checkpoint, save_checkpoint
    from part3_pretrain.pretraining import pretrain, read_corpus, recent, save_loss_curve
    from part3_pretrain.progress import say
    from part3_pretrain.resuming import TrainingState, settings

    picture, state_file = config.out_dir / "pretraining_loss_curve.png", config.checkpoint.with_suffix(".state.pt")
    check_free(config.checkpoint, picture, state_file)
    texts = read_corpus(config)
    made_by = {name: value for name, value in asdict(config).items() if name not in DECIDE_NOTHING}
    made_by["corpus"] = [path.name for path in config.corpus] if config.corpus else "synthetic retail conversations"
    decides = settings(config, but=DECIDE_NOTHING)
    decides["the digest of the corpus"] = sha256("\0".join(texts).encode()).hexdigest()
    with TrainingState(state_file, decides, config.save_every, config.resume) as state:
        model, tokenizer, losses = pretrain(texts, config, state)
        with parallel.whole(model):
            if parallel.rank() == 0:
                save_checkpoint(config.checkpoint, Checkpoint(model, tokenizer, made_by))
                save_loss_curve(picture, losses)
    say(f"pretraining ended at a loss of {recent(losses):.3f} nats per token")
    say(f"written: {config.checkpoint}, {picture}")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
