"""Conversations as token ids and labels, by the model's own chat template, which is rendered and never imitated.

The turns of the assistant have labels, each with the control token that the template puts behind it: it ends a reply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, takewhile

from part3_pretrain.checkpoint import Checkpoint
from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.model import Transformer
from part3_pretrain.runtime.cli import UserError, first_line
from part3_pretrain.tokenizer import check_tokenizer
from part4_sft.config import DEFAULT_TEMPLATE, SFTConfig
from part4_sft.dataset import Pair, Turns
from part4_sft.encoding import Example, PairEncoder
from part4_sft.extras.chat_template import OTHERWISE, ChatTemplate
from part4_sft.extras.control_tokens import ControlTokens

PRIVATE_USE = range(0xF0000, 0x10FFFE)  # characters without a meaning: those that a text does not hold can mark it


def choose_template(
    checkpoint: Checkpoint, chat_template: str | None, prompt_template: str | None
) -> ChatTemplate | str:
    """Return what a model reads messages by: the prompt template if one is given, else its chat template if it has one.

    Args:
        chat_template: "model" insists on its own, "none" does without it.

    Raises:
        UserError: the model has none, but must have.
    """
    own = ChatTemplate.of(checkpoint.hugging_face)
    if chat_template == "model" and not own:
        raise UserError("--chat-template model: this model has none", "leave it out, and give a --prompt-template")
    if own and not prompt_template and chat_template != "none":
        return own
    return prompt_template or DEFAULT_TEMPLATE


def with_template(config: SFTConfig, template: ChatTemplate | str) -> SFTConfig:
    """Return the settings in which it is written down which template was chosen."""
    if isinstance(template, str):
        return replace(config, chat_template="none", prompt_template=template)
    return replace(config, chat_template="model", prompt_template=None)


def make_encoder(
    checkpoint: Checkpoint,
    template: ChatTemplate | str,
    max_length: int,
    max_new_tokens: int,
    train_on_turns: str = "all",
) -> PairEncoder:
    """Return how a model reads texts; replies of one with a chat template end where the template says, from now on.

    The arguments, and what is raised, are those of `PairEncoder.for_checkpoint`.
    """
    if isinstance(template, str):
        return PairEncoder.for_checkpoint(checkpoint, template, max_length, max_new_tokens)
    encoder = ChatEncoder.of_template(checkpoint, template, max_length, max_new_tokens)
    end_replies(checkpoint.model, encoder.eos_id)
    return replace(encoder, train_on_turns=train_on_turns)


def end_replies(model: Transformer, eos_id: int) -> None:
    """Let this token end what the model generates, before those that did so already."""
    shape = model.config
    others = [other for other in shape.eos_ids if other != eos_id]
    pad_id = None if shape.pad_id == eos_id else shape.pad_id  # else it could not be drawn
    model.config = replace(shape, eos_ids=(eos_id, *others), pad_id=pad_id)


@dataclass(frozen=True)
class ChatEncoder(PairEncoder):
    """Encodes conversations for one model; a pair is a conversation of two messages."""

    chat: ChatTemplate = ChatTemplate("", ())
    train_on_turns: str = "all"  # of the assistant that have labels; or "last"

    @classmethod
    def of_template(
        cls, checkpoint: Checkpoint, chat: ChatTemplate, max_length: int, max_new_tokens: int
    ) -> ChatEncoder:
        """Return the encoder for this model's tokenizer and positions.

        Raises:
            UserError: the template cannot be used with this tokenizer, or leaves no room for a message.
        """
        tokenizer, positions = checkpoint.tokenizer, checkpoint.model.config.max_positions
        encoder = cls(tokenizer, 0, max_length=min(max_length, positions), max_positions=positions, chat=chat)
        encoder = replace(encoder, eos_id=encoder.find_end_of_turn())
        try:
            check_tokenizer(tokenizer, checkpoint.model.config.vocab_size, encoder.eos_id)
        except ValueError as error:
            raise UserError(f"the chat template cannot be used: {first_line(error)}", OTHERWISE) from error
        length, room = len(encoder.encode_turns((("user", "a"),)).ids), positions - max_new_tokens
        if length > room:
            raise UserError(
                f"the chat template makes {length} tokens of one letter, and --max-new-tokens leaves the model "
                f"{max(room, 0)} of its positions",
                f"choose fewer new tokens, or {OTHERWISE}",
            )
        return encoder

    def find_end_of_turn(self) -> int:
        """Return the id of the control token that the template puts behind a reply."""
        turns = (("user", "question"), ("assistant", "answer"))
        text, _ = self.chat.render(turns, self._marks(turns)[1], is_prompt=False)
        end_of_turn = self.control.first_in(text.rpartition("answer")[2])
        if end_of_turn is None:
            cause = "the chat template puts no control token behind a reply, so nothing would end one"
            raise UserError(cause, OTHERWISE)
        return end_of_turn

    def encode_prompt(self, context: str, room: int, turns: Turns = ()) -> list[int]:
        """Return the ids that a model answers, at most `room` and at most `max_length`.

        Too long a conversation loses its oldest turns, then what is left of the customer's words its beginning. Raises
        UserError where the template fails, or none of these words fit.
        """
        room = min(room, self.max_length)
        prompt, _ = self._fit(turns or (("user", context),), room, self.encode_turns)
        if len(prompt.ids) > room:
            cause = f"the chat template makes {len(prompt.ids)} tokens of the messages, with room for {room}"
            raise UserError(cause, "shorten the system message, or choose fewer --max-new-tokens")
        return prompt.ids

    def encode_what_fits(self, pairs: Sequence[Pair]) -> tuple[list[Example], list[str], list[tuple[str, str]]]:
        """Return the examples, the places of cut conversations, and place and length of each that does not fit."""
        examples, cut, too_long = [], [], []
        for number, pair in enumerate(pairs, start=1):
            place = pair.place or f"pair {number}"
            turns = (*(pair.turns or (("user", pair.context),)), ("assistant", pair.response))
            try:
                example, is_cut = self._fit(turns, self.max_length, self.encode_conversation)
            except UserError as error:
                raise UserError(f"{place}: {error}") from error
            if len(example.ids) > self.max_length:
                too_long.append((place, f"{len(example.ids)} tokens with system message and chat template"))
                continue
            examples.append(replace(example, place=pair.place))
            cut += [place] * is_cut
        return examples, cut, too_long

    def encode_turns(self, turns: Turns) -> Example:
        """Return the ids of turns that the assistant's next one follows; no label is real."""
        mark, marks = self._marks(turns)
        ids = self.control.encode(self.chat.render(self._guard(turns, mark), marks, is_prompt=True).text, mark)
        return Example(ids, [IGNORE_INDEX] * len(ids))

    def encode_conversation(self, turns: Turns) -> Example:
        """Return the ids of a conversation up to the end of the assistant's last turn, and labels for its turns."""
        mark, marks = self._marks(turns)
        guarded = self._guard(turns, mark)
        text, generations = self.chat.render(guarded, marks, is_prompt=False)
        spans = self._spans(text, generations or self._replies(text, guarded, marks))
        ids = self.control.encode(text[: spans[-1][1]], mark)
        labels = [IGNORE_INDEX] * len(ids)
        for begin, end in spans:
            before = self.control.encode(text[:begin], mark)
            # A token that spans the border belongs to the reply.
            first = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(before, ids)))
            last = len(self.control.encode(text[:end], mark))
            labels[first:last] = ids[first:last]
        return Example(ids, labels)

    def _replies(self, text: str, turns: Turns, marks: str) -> list[tuple[int, int]]:
        """Return for each turn of the assistant, as an empty span, where in the text the prompt that it answers ends.

        An assistant that speaks first answers nothing: its words belong to the prompt.
        """
        replies = []
        for place, (role, _) in enumerate(turns):
            if role == "assistant" and place and (self.train_on_turns == "all" or place == len(turns) - 1):
                prompt = self.chat.render(turns[:place], marks, is_prompt=True).text
                if not text.startswith(prompt):
                    cause = "the chat template writes what a reply answers in another way once the reply is there"
                    raise UserError(cause, f"leave the system message out, or {OTHERWISE}")
                replies.append((len(prompt), len(prompt)))
        return replies

    def _spans(self, text: str, replies: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the spans of a text that have labels: those of the replies with the control token that ends each."""
        end_of_turn = str(self.tokenizer.id_to_token(self.eos_id))
        ends = [max(end, text.find(end_of_turn, begin) + len(end_of_turn)) for begin, end in replies]
        limits = [*(begin for begin, _ in replies[1:]), len(text)]
        if any(end_of_turn not in text[begin:limit] for (begin, _), limit in zip(replies, limits)):
            raise UserError(f"the chat template puts no {end_of_turn} behind a turn of the assistant", OTHERWISE)
        spans = [(begin, end) for (begin, _), end in zip(replies, ends)]
        return spans if self.train_on_turns == "all" else spans[-1:]

    def _fit(self, turns: Turns, room: int, encode: Callable[[Turns], Example]) -> tuple[Example, bool]:
        """Return the example of the turns, and whether they had to be cut; one too long where that does not suffice."""
        example, kept = encode(turns), turns
        while (excess := len(example.ids) - room) > 0 and (shorter := self._without_oldest(kept, excess)):
            kept = shorter
            example = encode(kept)
        return example, kept != turns

    def _without_oldest(self, turns: Turns, excess: int) -> Turns:
        """Return the turns without those before the second of the user, or of its last without some tokens; () if none.

        System messages at the beginning stay.
        """
        first = next((place for place, (role, _) in enumerate(turns) if role != "system"), 0)
        users = [place for place, (role, _) in enumerate(turns) if role == "user" and place > first]
        if users:
            return turns[:first] + turns[users[0] :]
        role, content = turns[first]
        offsets = self.tokenizer.encode(content, add_special_tokens=False).offsets
        if role != "user" or len(offsets) <= excess:
            return ()
        shorter = content[max(1, offsets[excess][0]) :]
        return (*turns[:first], (role, shorter), *turns[first + 1 :])

    @cached_property
    def control(self) -> ControlTokens:
        return ControlTokens(self.tokenizer, self.chat.source)

    def _marks(self, turns: Turns) -> tuple[str, str]:
        """Return a mark for `ControlTokens` and two for `ChatTemplate.render`, none of which occurs anywhere."""
        used = set(self.chat.source).union(*(content for _, content in turns))
        mark, *marks = islice((letter for letter in map(chr, PRIVATE_USE) if letter not in used), 3)
        return mark, "".join(marks)

    def _guard(self, turns: Turns, mark: str) -> Turns:
        return tuple((role, self.control.break_up(role, content, mark)) for role, content in turns)
