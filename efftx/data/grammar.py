"""Sentences that a small grammar makes, in English and in German: a translation that a small model can learn.

What differs between the languages is what a translation has to learn: gender, case and number, endings of adjectives,
verbs at the end of a clause, verbs in second place behind an adverb, `do` in questions and negations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from efftx.data.dataset import Batch, DataConfig, Source, check_split, draw
from efftx.data.prepared import SPLITS
from efftx.data.rendering import Text
from efftx.data.vocabulary import EOS, PAD, UNK
from efftx.errors import UserError

N_EVALUATED = 500
"""Sentences of valid and of test."""
LONGEST = 24
"""Words of the longest sentence in either language, and its end."""
_DRAWN = 20
_FIRST_WORD = 3
_HELD_OUT = 10


class Noun(NamedTuple):
    """Singular and plural in both languages, and the gender: m, f or n."""

    en: str
    en_plural: str
    de: str
    gender: str
    de_plural: str


class Verb(NamedTuple):
    """English base, third person and participle; German infinitive, third person and participle; its object's case."""

    base: str
    third: str
    participle: str
    infinitive: str
    de_third: str
    de_participle: str
    case: str = "acc"


_NOUNS_TABLE = """
dog dogs Hund m Hunde
cat cats Katze f Katzen
child children Kind n Kinder
man men Mann m Männer
woman women Frau f Frauen
horse horses Pferd n Pferde
bird birds Vogel m Vögel
king kings König m Könige
teacher teachers Lehrer m Lehrer
doctor doctors Ärztin f Ärztinnen
house houses Haus n Häuser
book books Buch n Bücher
letter letters Brief m Briefe
apple apples Apfel m Äpfel
key keys Schlüssel m Schlüssel
table tables Tisch m Tische
door doors Tür f Türen
car cars Auto n Autos
flower flowers Blume f Blumen
window windows Fenster n Fenster
ship ships Schiff n Schiffe
bridge bridges Brücke f Brücken
river rivers Fluss m Flüsse
street streets Straße f Straßen
picture pictures Bild n Bilder
clock clocks Uhr f Uhren
friend friends Freund m Freunde
tree trees Baum m Bäume
egg eggs Ei n Eier
song songs Lied n Lieder
"""
NOUNS = tuple(Noun(*row.split()) for row in _NOUNS_TABLE.strip().splitlines())
_PLACES_TABLE = """
garden gardens Garten m Gärten
city cities Stadt f Städte
village villages Dorf n Dörfer
kitchen kitchens Küche f Küchen
forest forests Wald m Wälder
school schools Schule f Schulen
room rooms Zimmer n Zimmer
church churches Kirche f Kirchen
"""
PLACES = tuple(Noun(*row.split()) for row in _PLACES_TABLE.strip().splitlines())
_ADJECTIVES_TABLE = """
small klein
big groß
old alt
new neu
red rot
black schwarz
beautiful schön
good gut
cheap billig
young jung
slow langsam
strong stark
white weiß
quiet still
empty leer
ugly hässlich
"""
ADJECTIVES = tuple(tuple(row.split()) for row in _ADJECTIVES_TABLE.strip().splitlines())
_VERBS_TABLE = """
see sees seen sehen sieht gesehen
buy buys bought kaufen kauft gekauft
love loves loved lieben liebt geliebt
find finds found finden findet gefunden
paint paints painted malen malt gemalt
hear hears heard hören hört gehört
carry carries carried tragen trägt getragen
know knows known kennen kennt gekannt
forget forgets forgotten vergessen vergisst vergessen
lose loses lost verlieren verliert verloren
help helps helped helfen hilft geholfen dat
thank thanks thanked danken dankt gedankt dat
trust trusts trusted trauen traut getraut dat
"""
VERBS = tuple(Verb(*row.split()) for row in _VERBS_TABLE.strip().splitlines())
ADVERBS = (("today", "heute"), ("often", "oft"), ("here", "hier"), ("now", "jetzt"), ("sometimes", "manchmal"))
AUXILIARIES = (("will", "wird", "werden"), ("should", "soll", "sollen"), ("can", "kann", "können"))
CLAUSES = (
    ("we know that", "wir wissen , dass"),
    ("he believes that", "er glaubt , dass"),
    ("they hope that", "sie hoffen , dass"),
    ("nobody says that", "niemand sagt , dass"),
)
NUMBERS = (("two", "zwei"), ("three", "drei"), ("four", "vier"))
PREPOSITIONS = (("in", "in"), ("behind", "hinter"), ("beside", "neben"), ("near", "bei"))
_THE = {
    "nom": {"m": "der", "f": "die", "n": "das", "pl": "die"},
    "acc": {"m": "den", "f": "die", "n": "das", "pl": "die"},
    "dat": {"m": "dem", "f": "der", "n": "dem", "pl": "den"},
}
_A = {
    "nom": {"m": "ein", "f": "eine", "n": "ein"},
    "acc": {"m": "einen", "f": "eine", "n": "ein"},
    "dat": {"m": "einem", "f": "einer", "n": "einem"},
}
_WEAK = {"nom": {"m": "e", "f": "e", "n": "e"}, "acc": {"m": "en", "f": "e", "n": "e"}}
_MIXED = {"nom": {"m": "er", "f": "e", "n": "es"}, "acc": {"m": "en", "f": "e", "n": "es"}}


class Phrase(NamedTuple):
    """The words of a part of a sentence in both languages, and whether it is plural."""

    en: list[str]
    de: list[str]
    plural: bool = False


def noun_phrase(noun: Noun, case: str, drawn: Sequence[int]) -> Phrase:
    """A noun with its article or number and perhaps an adjective, by three drawn numbers; `case`: nom, acc or dat."""
    form, which, described = drawn[0] % 4, drawn[1], drawn[2]
    adjective = ADJECTIVES[described // 2 % len(ADJECTIVES)] if described % 2 else None
    plural = form >= 2
    gender = "pl" if plural else noun.gender
    en = [adjective[0]] if adjective else []
    en.append(noun.en_plural if plural else noun.en)
    if form == 1:
        en.insert(0, "an" if en[0][0] in "aeiou" else "a")
        article, ending = _A[case][gender], _MIXED.get(case, {}).get(gender, "en")
    elif form == 3:
        number = NUMBERS[which % len(NUMBERS)]
        en.insert(0, number[0])
        article, ending = number[1], "en" if case == "dat" else "e"
    else:
        en.insert(0, "the")
        article, ending = _THE[case][gender], _WEAK.get(case, {}).get(gender, "en")
    word = noun.de_plural if plural else noun.de
    if plural and case == "dat" and word[-1] not in "ns":
        word += "n"
    return Phrase(en, [article, *([adjective[1] + ending] if adjective else []), word], plural)


def sentence(drawn: Sequence[int], *, held_out: bool) -> tuple[list[str], list[str]]:
    """The words of a sentence in English and in German, by `_DRAWN` numbers from 0 on.

    Subject, verb and object of those that are `held_out` stand together in no other sentence.
    """
    form, subject, verb_number, place = drawn[0] % 6, drawn[1] % len(NOUNS), drawn[2] % len(VERBS), drawn[4]
    others = drawn[3] % (len(NOUNS) // _HELD_OUT)
    rest = drawn[5] % (_HELD_OUT - 1) + 1 if not held_out else 0
    its_object = (rest - subject - verb_number) % _HELD_OUT + _HELD_OUT * others
    verb = VERBS[verb_number]
    who, whom = noun_phrase(NOUNS[subject], "nom", drawn[6:9]), noun_phrase(NOUNS[its_object], verb.case, drawn[9:12])
    en_where, de_where = [], []
    if place % 3 == 0:
        preposition = PREPOSITIONS[drawn[12] % len(PREPOSITIONS)]
        where = noun_phrase(PLACES[drawn[13] % len(PLACES)], "dat", (0, 0, drawn[14]))
        en_where, de_where = [preposition[0], *where.en], [preposition[1], *where.de]
    en_not, de_not = (["not"], ["nicht"]) if drawn[15] % 4 == 0 else ([], [])
    middle = [*whom.de, *de_not, *de_where]
    en_rest = [*whom.en, *en_where]
    present, de_present = (verb.base, verb.infinitive) if who.plural else (verb.third, verb.de_third)
    have, de_have = ("have", "haben") if who.plural else ("has", "hat")
    do = "do" if who.plural else "does"
    finite = [do, "not", verb.base] if en_not else [present]
    if form == 0:
        return [*who.en, *finite, *en_rest, "."], [*who.de, de_present, *middle, "."]
    if form == 1:
        adverb = ADVERBS[drawn[16] % len(ADVERBS)]
        return [adverb[0], *who.en, *finite, *en_rest, "."], [adverb[1], de_present, *who.de, *middle, "."]
    if form == 2:
        perfect = [*who.de, de_have, *middle, verb.de_participle, "."]
        return [*who.en, have, *en_not, verb.participle, *en_rest, "."], perfect
    if form == 3:
        can, de_can, de_can_plural = AUXILIARIES[drawn[17] % len(AUXILIARIES)]
        german = [*who.de, de_can_plural if who.plural else de_can, *middle, verb.infinitive, "."]
        return [*who.en, can, *en_not, verb.base, *en_rest, "."], german
    if form == 4:
        clause, de_clause = CLAUSES[drawn[18] % len(CLAUSES)]
        german = [*de_clause.split(), *who.de, *middle, verb.de_participle, de_have, "."]
        return [*clause.split(), *who.en, have, *en_not, verb.participle, *en_rest, "."], german
    return [do, *who.en, *en_not, verb.base, *en_rest, "?"], [de_present, *who.de, *middle, "?"]


@cache
def words() -> tuple[str, ...]:
    """Every word of either language, sorted; word i is token i + 3."""
    both: set[str] = {*",.?", "the", "a", "an", "not", "nicht", "have", "haben", "has", "hat", "do", "does"}
    for noun in (*NOUNS, *PLACES):
        plural = noun.de_plural
        both |= {noun.en, noun.en_plural, noun.de, plural, plural + "n" * (plural[-1] not in "ns")}
    for en, de in ADJECTIVES:
        both |= {en, *(de + ending for ending in ("e", "en", "er", "es"))}
    for verb in VERBS:
        both |= set(verb[:6])
    for pair in (*ADVERBS, *AUXILIARIES, *NUMBERS, *PREPOSITIONS):
        both |= set(pair)
    for clause in CLAUSES:
        both |= {word for text in clause for word in text.split()}
    for table in (_THE, _A):
        both |= {word for case in table.values() for word in case.values()}
    return tuple(sorted(both))


@cache
def _numbers() -> dict[str, int]:
    return {word: i + _FIRST_WORD for i, word in enumerate(words())}


def encode(sentence: Sequence[str]) -> list[int]:
    """The tokens of words; UserError for one that the grammar has not."""
    numbers = _numbers()
    for word in sentence:
        if word not in numbers:
            raise UserError(
                "unknown_token", f"'{word}' is no word of data=grammar.", "Such as: the old dog sees a cat ."
            )
    return [numbers[word] for word in sentence]


def decode(ids: Sequence[int]) -> str:
    """The words of tokens up to the first end, with blanks between them."""
    before = list(ids)
    before = before[: before.index(EOS)] if EOS in before else before
    return " ".join("?" if token == UNK else words()[token - _FIRST_WORD] for token in before if token != PAD)


class Words(Text):
    """Words with blanks between them."""

    eos: int | None = EOS
    ends_inputs = True
    form = "words of the grammar with blanks between them, such as `the old dog sees a cat .`"

    def encode(self, text: str) -> list[int]:
        """One token a word."""
        return encode(text.split())

    def decode(self, ids: Sequence[int]) -> str:
        """The words."""
        return decode(ids)


@dataclass
class GrammarConfig(DataConfig):
    """Rows of `length` words."""

    length: int = LONGEST


class Grammar:
    """English sentences as inputs and their German translations as targets; `batch` as `data.dataset` says.

    Training is drawn without end. Valid and test have `N_EVALUATED` sentences each, whose subject, verb and object
    stand together in no sentence of the training.
    """

    name, unit, metrics = "grammar", "nats/token", ("bleu",)
    label_targets: Sequence[Sequence[int]] = ()
    chance_accuracy = None

    def __init__(self, config: GrammarConfig, target_length: int) -> None:
        for key, n in (("length", config.length), ("target_length", target_length)):
            if n < LONGEST:
                message = f"data.{key}={n} is too short for the longest sentence of data=grammar."
                raise UserError("bad_value", message, f"Set it to {LONGEST} or more.")
        self.input_length, self.length = config.length, target_length

    variant = "grammar[en-de]"

    @property
    def vocab_size(self) -> int:
        """Padding, end, unknown, and the words of both languages."""
        return _FIRST_WORD + len(words())

    @property
    def checksum(self) -> str:
        """SHA-256 over the first sentences of each split: another grammar has another checksum."""
        digest = hashlib.sha256(self.variant.encode())
        for split in SPLITS:
            rows = _rows(split, 0, 0, 64)
            digest.update(repr([sentence(row, held_out=split != "train") for row in rows]).encode())
        return digest.hexdigest()

    def batch(self, split: str, seed: int, step: int, batch_size: int) -> Batch:
        """Batch `step`, a pure function of its arguments; valid and test ignore `seed`. IndexError past their end."""
        check_split(split)
        if split == "train":
            pairs = [sentence(row, held_out=False) for row in _rows(split, seed, step, batch_size)]
        else:
            pairs = list(_evaluated(split)[step * batch_size : (step + 1) * batch_size])
            if step < 0 or not pairs:
                raise IndexError(f"{split} of {self.variant} has no batch {step} of {batch_size} rows")
        inputs_BE = np.full((len(pairs), self.input_length), PAD, dtype=np.int64)
        tokens_BL = np.full((len(pairs), self.length), PAD, dtype=np.int64)
        for row, (english, german) in enumerate(pairs):
            for tokens, sentence_of in ((inputs_BE, english), (tokens_BL, german)):
                ids = [*encode(sentence_of), EOS]
                tokens[row, : len(ids)] = ids
        return Batch.of(tokens_BL, tokens_BL != PAD, inputs_BE)

    def n_batches(self, split: str, batch_size: int) -> int | None:
        """Batches that cover valid or test once; None for train."""
        check_split(split)
        return None if split == "train" else -(-N_EVALUATED // batch_size)

    def n_documents(self, split: str) -> int:
        """Sentences of valid or test; ValueError for train, which has no end."""
        if split == "train":
            raise ValueError("The training split of data=grammar has no end.")
        return N_EVALUATED

    def decode(self, ids: Sequence[int]) -> str:
        """The words up to the first end."""
        return decode(ids)

    def source(self, split: str, i: int) -> str:
        """The English sentence."""
        return " ".join(_evaluated(split)[i][0])

    def references(self, split: str, i: int) -> list[str]:
        """Its one translation."""
        return [" ".join(_evaluated(split)[i][1])]


def _rows(split: str, seed: int, step: int, n: int) -> list[list[int]]:
    rows: list[list[int]] = draw("grammar", split, seed, step, n * _DRAWN, 1 << 30).reshape(n, _DRAWN).tolist()
    return rows


@cache
def _evaluated(split: str) -> tuple[tuple[list[str], list[str]], ...]:
    return tuple(sentence(row, held_out=True) for row in _rows(split, 0, 0, N_EVALUATED))


def open_grammar(config: GrammarConfig, objective: str = "seq2seq") -> Grammar:
    """The sentences in rows of `config.length` English and `config.target_length` German words."""
    return Grammar(config, SOURCE.target_length(config, "seq2seq"))


SOURCE = Source(
    name="grammar",
    config=GrammarConfig,
    licence="generated, no licence needed",
    variant=Grammar.variant,
    open=open_grammar,
    vocab_size=lambda config, objective="seq2seq": _FIRST_WORD + len(words()),
    rendering=lambda config, objective="seq2seq", model=None: Words(),
    objectives=("seq2seq",),
    targets=lambda config: LONGEST,
    own_length=LONGEST,
    generates=True,
)
