"""Generated text for the demo: everyday prose, then notes that are more special at each level.

A deeper level keeps the form of the level above and adds words, codes and correlations of its own: which dose belongs
to a drug, which tracing and which code to a disease, how one physician dates and signs.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass
from random import Random
from typing import Final

MAX_BYTES: Final = 319  # a document and its end token fit one training sequence
REPEATED: Final = 1 / 3  # of a lesson is text of the levels above, so that a level does not forget them


@dataclass(frozen=True, slots=True)
class Corpus:
    """The text of one level. `write` makes a document with all of `marks`; no level above writes any mark."""

    name: str
    marks: tuple[str, ...]
    write: Callable[[Random], str]

    def held_out(self, count: int, *, seed: int, lessons: Set[str]) -> list[str]:
        """Write `count` different documents that are in no lesson; the same seed gives the same documents."""
        random = Random(f"held-out/{self.name}/{seed}")  # noqa: S311 - text, not a secret
        documents: dict[str, None] = {}
        while len(documents) < count:
            document = self.write(random)
            if document not in lessons:
                documents[document] = None
        return list(documents)


def lesson(depth: int, size: int, *, seed: int) -> list[str]:
    """Write different documents for the level at `depth`, at least `size` bytes; a third is of the levels above."""
    random = Random(f"lesson/{depth}/{seed}")  # noqa: S311 - text, not a secret
    documents: dict[str, None] = {}
    written = 0
    while written < size:
        repeated = depth > 0 and random.random() < REPEATED
        document = (random.choice(CORPORA[:depth]) if repeated else CORPORA[depth]).write(random)
        written += 0 if document in documents else len(document.encode())
        documents[document] = None
    return list(documents)


# Base: the prose, the ledgers, the letters and the telegrams of a small town

_NAMES = ("Nora", "Tomas", "Ines", "Karl", "Mira", "Oskar", "Lena", "Pavel", "Ruth", "Emil", "Vera", "Hugo", "Zora")
_TRADES = ("baker", "ferryman", "teacher", "gardener", "miller", "clerk", "painter", "carpenter", "judge", "oxherd")
_PLACES = ("Harlow", "the old mill", "the market", "Westbridge", "the harbour", "the library", "Fenwick", "the quay")
_GOODS = ("pears", "candles", "bread", "apples", "paper", "wool", "honey", "letters", "tools", "seeds", "yarn", "figs")
_VESSELS = ("basket", "crate", "bag", "cart", "box", "jug")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_WEATHER = ("It rained until noon.", "The wind was cold.", "The morning was bright!", "Fog lay over the river.")
_VERBS = ("carried", "sold", "bought", "brought", "counted", "repaired", "found", "left", "weighed", "exchanged")
_ORDERS = ("send", "hold", "weigh", "fetch")
_CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ONSETS: Final[tuple[str, ...]] = (*"bcdfghjklmnpqrstvwxyz", "ch", "th", "st", "gr", "pl")
_VOWELS: Final[tuple[str, ...]] = (*"aeiouy", "ai", "ea", "io", "ou")
_CODAS: Final[tuple[str, ...]] = ("", *"nrlstdmx", "ck", "nd")
_SEPARATORS = (
    " ",
    " ",
    " ",
    " ",
    " ",
    " ",
    " ",
    " ",
    ", ",
    ", ",
    ". ",
    ": ",
    "; ",
    "/",
    " - ",
    " | ",
    "-",
    "+",
    "=",
    " (",
    ") ",
)
_REASONS = ("because the bridge was closed", "since the road was wet", "before the shop opened", "after the bell rang")


def _town(random: Random) -> str:
    pick = random.choice
    parts = [
        _journey(random),
        _catalogue(random),
        pick((_weather, _price, _speech, _ledger, _telegram, _letter))(random),
    ]
    random.shuffle(parts)
    return " ".join(parts)


def _word(random: Random) -> str:
    """Make up a name, so that the base learns letters and not only a list of words."""
    syllables = "".join(random.choice(_ONSETS) + random.choice(_VOWELS) for _ in range(random.randint(1, 3)))
    return (syllables + random.choice(_CODAS)).capitalize()


def _catalogue(random: Random) -> str:
    """Write entries in any order, so that the base does not learn that unseen text is impossible."""
    return "".join(_entry(random) + random.choice(_SEPARATORS) for _ in range(random.randint(4, 8)))


def _entry(random: Random) -> str:
    word, number = _word(random), f"{random.randint(1, 999) / random.choice((1, 1, 10)):g}"
    forms: list[str] = [word.lower(), word.lower(), word, word.upper()[:4], number, f"{number}{word.lower()[:2]}"]
    return random.choice(forms)


def _weather(random: Random) -> str:
    return random.choice(_WEATHER)


def _journey(random: Random) -> str:
    pick = random.choice
    load = f"a {pick(_VESSELS)} of {pick(_GOODS)}"
    return f"On {pick(_DAYS)} {pick(_NAMES)} {pick(_VERBS)} {load} at {pick(_PLACES)} {pick(_REASONS)}."


def _price(random: Random) -> str:
    pick = random.choice
    asked, pieces = random.randint(2, 90), random.randint(3, 48)
    return f"The {pick(_TRADES)} asked {asked} crowns for the {pick(_GOODS)}, {pieces} in all; is that too dear?"


def _speech(random: Random) -> str:
    pick = random.choice
    clock = f"{random.randint(1, 12)}:{random.randint(0, 59):02d}"
    return f'"Keep the {pick(_GOODS)} for {_word(random)}," said the {pick(_TRADES)}, "we\'ll meet at {clock}."'


def _ledger(random: Random) -> str:
    pick = random.choice
    shelf = f"[{pick(_CAPITALS)}{random.randint(10, 99)}.{random.randint(0, 9)}]"
    sums = f"{random.randint(2, 60)}/{random.randint(2, 9)} @ {random.randint(100, 999) / 10:.1f}%"
    number = f"#{random.randint(100, 9999)} ({pick(('paid', 'owed', 'void'))})"
    return f"{shelf} {pick(_GOODS)} | {sums} => {number} ~{pick(_DAYS)}~"


def _telegram(random: Random) -> str:
    pick = random.choice
    order = f"{pick(_ORDERS)} {random.randint(2, 99)} {_word(random)} {pick(_VESSELS)}"
    return f">> {order} TO {_word(random)} -- {pick(_NAMES)} & CO.".upper()


def _letter(random: Random) -> str:
    pick = random.choice
    year = f"{random.randint(1, 28)}.{random.randint(1, 12)}.{random.randint(1870, 1930)}"
    return f"Dear {pick(_NAMES)} {_word(random)} of {_word(random)}, {_word(random).lower()} {pick(_VERBS)} {year}."


# Medicine: a complaint goes with its finding and its drug, a drug with its dose

_COMPLAINTS = (
    ("productive cough", "crackles at the left base", "amoxicillin 500 mg three times daily"),
    ("burning micturition", "suprapubic tenderness", "nitrofurantoin 100 mg twice daily"),
    ("thirst and polyuria", "dry mucosae", "metformin 850 mg twice daily"),
    ("wheeze at night", "expiratory rhonchi", "salbutamol 200 mcg as required"),
    ("epigastric pain", "guarding absent", "omeprazole 20 mg once daily"),
    ("throbbing headache", "photophobia", "sumatriptan 50 mg as required"),
    ("itching rash", "urticarial wheals", "cetirizine 10 mg once daily"),
    ("swollen knee", "joint effusion", "naproxen 250 mg twice daily"),
)
_HISTORIES = ("asthma", "hypothyroidism", "type 2 diabetes", "eczema", "gout", "migraine", "nil of note")


def _patient(random: Random) -> str:
    return f"Pt {random.choice('MF')}{random.randint(19, 92)}y"


def _review(random: Random) -> str:
    return f"review in {random.randint(1, 6)}/52"


def _vitals(random: Random) -> str:
    pressure = f"BP {random.randint(98, 178)}/{random.randint(56, 102)} mmHg"
    return f"T {random.randint(360, 394) / 10:.1f}C, {pressure}, SpO2 {random.randint(89, 99)}%"


def _consultation(random: Random) -> str:
    complaint, finding, drug = random.choice(_COMPLAINTS)
    heard = f"C/o {complaint} for {random.randint(2, 14)}/7. PMH: {random.choice(_HISTORIES)}"
    seen = f"O/E: {_vitals(random)}; {finding}"
    return f"{_patient(random)}. {heard}. {seen}. Rx {drug}, {_review(random)}."


# Cardiology: a tracing, an echo and a marker, which belong together


@dataclass(frozen=True, slots=True)
class _Heart:
    complaint: str
    rhythm: str
    rate: tuple[int, int]
    echo: str
    ejection: tuple[int, int]
    drug: str
    diagnosis: str
    code: str
    because: str


_HEARTS = (
    _Heart("palpitations", "irregularly irregular, no P waves", (96, 158), "dilated left atrium", (48, 60),
           "apixaban 5 mg twice daily", "atrial fibrillation", "I48.91", "chaotic R-R intervals"),
    _Heart("exertional dyspnoea", "sinus, left bundle branch block", (72, 104), "global hypokinesia", (18, 36),
           "sacubitril 49 mg twice daily", "systolic heart failure", "I50.22", "low ejection fraction"),
    _Heart("crushing chest pain", "sinus, ST elevation in II III aVF", (58, 98), "inferior akinesia", (38, 52),
           "ticagrelor 90 mg twice daily", "inferior infarction", "I21.19", "regional ST change"),
    _Heart("syncope on effort", "sinus, voltage criteria for LVH", (60, 88), "calcified aortic valve", (54, 68),
           "bisoprolol 2.5 mg once daily", "aortic stenosis", "I35.0", "fixed outflow gradient"),
    _Heart("pleuritic chest pain", "sinus, saddle ST in all leads", (82, 118), "trivial effusion", (56, 66),
           "colchicine 500 mcg twice daily", "acute pericarditis", "I30.9", "widespread ST change"),
    _Heart("dizzy spells", "P waves dissociated from QRS", (28, 44), "normal valves", (52, 64),
           "isoprenaline 5 mcg per minute", "complete heart block", "I44.2", "atria and ventricles apart"),
)  # fmt: skip


def _workup(random: Random, heart: _Heart) -> str:
    rate, ejection = random.randint(*heart.rate), random.randint(*heart.ejection)
    tracing = f"ECG: {heart.rhythm}, HR {rate}, QTc {random.randint(388, 482)}ms"
    return f"{_patient(random)}. C/o {heart.complaint}. {tracing} | TTE: {heart.echo}, LVEF {ejection}%"


def _cardiology(random: Random) -> str:
    heart = random.choice(_HEARTS)
    symptoms = f"NYHA {random.choice(('I', 'II', 'III', 'IV'))}"
    return f"{_workup(random, heart)} | {symptoms}. Rx {heart.drug}, {_review(random)}."


# Diagnosis: a verdict, its code, its grade and its grounds


def _diagnosis(random: Random, heart: _Heart | None = None) -> str:
    heart = heart or random.choice(_HEARTS)
    grade = random.choice(("possible", "probable", "definite"))
    return f"{_workup(random, heart)}. => DIAGNOSIS [{heart.code}] {heart.diagnosis} ({grade}) BECAUSE {heart.because}."


# Alice: how one physician opens, hedges and signs


def _alice(random: Random) -> str:
    date = f"{random.randint(2029, 2033)}.{random.randint(1, 12):02d}.{random.randint(1, 28):02d}"
    plan = random.choice(("pls book tape", "pls chase bloods", "d/w team at 8", "fam updated"))
    return f"~{date} bay {random.randint(1, 9)}~ {_diagnosis(random)} >> {plan}, ta muchly -- Alice M. #4417"


CORPORA: Final = (
    Corpus("base", (), _town),
    Corpus("domain", ("Pt ", "C/o "), _consultation),
    Corpus("sub-domain", ("ECG: ", " | TTE: ", "LVEF "), _cardiology),
    Corpus("task", ("=> DIAGNOSIS [", "BECAUSE "), _diagnosis),
    Corpus("user", ("~ Pt ", "ta muchly -- Alice M. #4417"), _alice),
)
