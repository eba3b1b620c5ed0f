"""Chat templates as their authors publish them, without the parts about tools, and tokenizers that fit them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEMPLATES = {
    path.stem: path.read_text(encoding="utf-8") for path in Path(__file__).with_name("templates").glob("*.jinja")
}


@dataclass(frozen=True)
class Family:
    """A template, the control tokens that it writes, and how its tokenizer makes tokens of words."""

    source: str
    end_of_turn: str
    control: tuple[str, ...] = ()
    words: str = "bytes"  # byte-level; or "first" or "prepend": sentencepiece, by the newer or the older conversion
    bos: str | None = None
    eos: str = "<EOS>"
    swallows_spaces: bool = False  # a control token takes what is blank behind it

    def tokenizer(self, byte_level: Tokenizer) -> Tokenizer:
        made = Tokenizer.from_str(byte_level.to_str()) if self.words == "bytes" else sentencepiece(self.words)
        names = dict.fromkeys([*filter(None, [self.bos, self.eos]), *self.control, self.end_of_turn])
        spaces = self.swallows_spaces
        made.add_special_tokens([AddedToken(name, rstrip=spaces, normalized=False) for name in names])
        if self.source == TEMPLATES["qwen3"]:
            made.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>")])
        made.encode_special_tokens = True
        return made

    @property
    def settings(self) -> dict[str, Any]:
        named = {"bos_token": self.bos, "eos_token": self.eos}
        return {"tokenizer_config.json": named | {"chat_template": self.source}}

    def theirs(self, tokenizer: Tokenizer) -> Any:
        """The tokenizer of transformers."""
        copy = Tokenizer.from_str(tokenizer.to_str())
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=copy, bos_token=self.bos, eos_token=self.eos)
        fast.chat_template = self.source
        return fast


def sentencepiece(words: str) -> Tokenizer:
    """A vocabulary of pieces that begin with a space in the way of Llama 2, and of bytes for all other letters."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if words == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    texts = ["[INST] My desk is late.", " [/INST]", "I am sorry.\n", "<<SYS>> You are kind."] * 20
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", *letters]))
    parsed = json.loads(tokenizer.to_str())
    parsed["added_tokens"] = parsed["added_tokens"][:1]  # bytes are entries like all others
    return Tokenizer.from_str(json.dumps(parsed))


IM = ("<|im_start|>", "<|im_end|>")
FAMILIES = {
    "chatml": Family(TEMPLATES["chatml"], "<|im_end|>", IM),
    "qwen2.5": Family(TEMPLATES["qwen2_5"], "<|im_end|>", ("<|endoftext|>", *IM), eos="<|im_end|>"),
    "smollm2": Family(TEMPLATES["smollm2"], "<|im_end|>", IM, bos="<|im_start|>", eos="<|im_end|>"),
    "llama2": Family(TEMPLATES["llama2"], "</s>", words="prepend", bos="<s>", eos="</s>"),
    "llama3": Family(
        TEMPLATES["llama3"],
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>", *(f"<|reserved_special_token_{n}|>" for n in range(247))),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
    ),
    "mistral": Family(TEMPLATES["mistral"], "</s>", ("[INST]", "[/INST]"), words="first", bos="<s>", eos="</s>"),
    "gemma": Family(TEMPLATES["gemma"], "<end_of_turn>", ("<start_of_turn>",), bos="<bos>", eos="<eos>"),
    "zephyr": Family(TEMPLATES["zephyr"], "</s>", words="first", bos="<s>", eos="</s>"),
    "phi3": Family(
        TEMPLATES["phi3"],
        "<|end|>",
        ("<|system|>", "<|user|>", "<|assistant|>"),
        words="prepend",
        bos="<s>",
        eos="<|endoftext|>",
        swallows_spaces=True,
    ),
    "qwen3": Family(TEMPLATES["qwen3"], "<|im_end|>", IM),
}


def telling(chatml: str) -> str:
    """The source of a template of the kind ChatML that tells besides what the assistant wrote, as TRL needs it."""
    written = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    assert chatml.count(written) == 1
    return chatml.replace(
        written,
        "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}{% generation %}"
        "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
        "{% endif %}{{ '\n' }}",
    )


GENERATION = telling(FAMILIES["chatml"].source)
