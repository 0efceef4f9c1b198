"""Sentences for the synthesiser: a small grammar, so that any amount of text comes from a seed.

Training and held-out sentences share no template and no noun, so held-out speech is new in its words as well as in its
voices. No sentence has a comma: an utterance is one stretch of speech, and its start and stop are unambiguous.
"""

import dataclasses
import random
from collections.abc import Iterator
from typing import Final


@dataclasses.dataclass(frozen=True)
class Grammar:
    """Templates whose ``{slot}`` names are filled from word lists."""

    templates: tuple[str, ...]
    words: dict[str, tuple[str, ...]]

    def sentences(self, seed: int) -> Iterator[str]:
        """Endless sentences, the same for the same seed."""
        chance = random.Random(seed)
        while True:
            template = chance.choice(self.templates)
            sentence = template
            for slot, choices in self.words.items():
                while "{" + slot + "}" in sentence:
                    sentence = sentence.replace("{" + slot + "}", chance.choice(choices), 1)
            yield sentence[0].upper() + sentence[1:]


TRAINING: Final = Grammar(
    templates=(
        "the {adj} {noun} {verb} the {noun} {place}.",
        "{name} {verb} a {adj} {noun} every {time}.",
        "why does the {noun} always {base} {place}?",
        "I would like {number} {noun}s and a {adj} {noun} please.",
        "on {time} {name} {verb} {number} {noun}s {place}.",
        "can you hear the {adj} {noun} {place}?",
        "{name} said that the {noun} was {adj} and {adj}.",
        "please {base} the {noun} before {time}.",
        "there were {number} {adj} {noun}s {place} this {time}.",
        "nobody {verb} the {noun} because it was too {adj}.",
        "my {noun} is much more {adj} than your {noun}.",
        "{number} times {number} is not {number}.",
        "what a {adj} {time} to {base} a {noun}!",
        "we {base} and {base} until the {noun} is {adj}.",
        "go {place} and ask {name} about the {adj} {noun}.",
    ),
    words={
        "adj": tuple(
            "quick quiet yellow ancient gentle heavy curious shiny purple clever frozen hollow jolly broken wide "
            "smooth thirsty royal bitter warm foggy loyal dusty bright narrow vivid joyful azure huge".split()
        ),
        "noun": tuple(
            "fox river engine garden teacher violin mountain bottle shadow kitchen lantern bridge pirate window "
            "thunder chair journey button village zebra cousin whistle oven breath judge feather yacht measure "
            "ship house".split()
        ),
        "verb": tuple(
            "watched carried painted followed chose measured forgot helped pushed joined washed bought loved threw "
            "noticed fixed hid guarded thanked shook".split()
        ),
        "base": tuple("watch carry paint follow choose measure push join wash buy throw fix guard shake sing".split()),
        "name": tuple("Arthur Beatrice Charlie Dorothy Eugene Fiona George Hannah Isaac Julia Thomas Vera".split()),
        "place": (
            "near the harbour",
            "behind the old church",
            "under the wooden table",
            "in the middle of nowhere",
            "at the edge of the forest",
            "over the frozen lake",
            "outside the city walls",
            "along the dusty road",
        ),
        "time": tuple("morning evening Monday Thursday winter summer midnight August holiday".split()),
        "number": tuple("two three five seven eleven fourteen thirty sixty ninety".split()),
    },
)

HELD_OUT: Final = Grammar(
    templates=(
        "a {adj} {noun} lives {place} with {number} {noun}s.",
        "have you ever seen {name} {base} a {noun}?",
        "the {noun} and the {noun} {verb} each other {place}.",
        "tomorrow {name} and I will {base} the {adj} {noun}.",
        "if the {noun} is {adj} then we {base} it again.",
        "it took {number} hours to {base} that {adj} {noun}.",
        "{name} never {verb} such a {adj} {noun}.",
        "listen to the {noun} that {name} {verb} {place}.",
    ),
    words={
        "adj": tuple("silver lazy enormous polite crooked fresh hungry tiny orange brave sharp cheerful".split()),
        "noun": tuple(
            "parrot doctor piano castle blanket garage turtle message pepper island jacket machine thief valley".split()
        ),
        "verb": tuple("visited cooked borrowed chased described finished wrapped heard".split()),
        "base": tuple("visit cook borrow chase describe finish wrap draw".split()),
        "name": tuple("Oliver Penelope Ruth Samuel Walter Josephine".split()),
        "place": ("beyond the hills", "inside a paper box", "by the lighthouse", "on the third floor"),
        "number": tuple("four six eight twelve nineteen forty".split()),
    },
)
