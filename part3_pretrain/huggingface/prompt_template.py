"""A prompt template as a chat template, so that other programs ask a model in the form that it was trained on."""

from __future__ import annotations

import json

from tokenizers import Tokenizer

from part3_pretrain.runtime.cli import unescape

# Several messages are lines of one context, as `part4_sft.formats` reads them.
SOURCE = """{%%- set is_answered = messages[-1].role == 'assistant' and not add_generation_prompt %%}
{%%- set asked = messages[:-1] if is_answered else messages %%}
{{- %(before)s }}
{%%- for message in asked %%}
    {{- message.content if asked | length == 1 else message.role | capitalize + ': ' + message.content }}
    {{- '' if loop.last else '\\n' }}
{%%- endfor %%}
{{- %(behind)s }}
{%%- if is_answered %%}
    {{- ' ' + messages[-1].content + %(eos)s }}
{%%- endif %%}
"""


def as_chat_template(prompt_template: str, tokenizer: Tokenizer, eos_id: int) -> str:
    r"""Return the Jinja that makes the same prompt of messages, tokenised by transformers to the same ids.

    Args:
        prompt_template: as it is written on a command line, with {context} in it, and \n for a new line.
    """
    before, behind = unescape(prompt_template).split("{context}")
    first = tokenizer.encode("a")
    bos = "".join(token for token, is_added in zip(first.tokens, first.special_tokens_mask) if is_added)
    reader = Tokenizer.from_str(tokenizer.to_str())
    reader.encode_special_tokens = False
    # Some tokenizers put a space before the first word, unless <BOS> is written before it.
    gap = "" if reader.encode(f"{bos}a", add_special_tokens=False).ids == first.ids else " "
    texts = {"before": bos + gap + before, "behind": behind, "eos": tokenizer.id_to_token(eos_id)}
    return SOURCE % {name: json.dumps(text, ensure_ascii=False) for name, text in texts.items()}
