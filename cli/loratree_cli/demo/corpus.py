"""Text that the demo writes for itself: everyday prose, then notes that get more special level by level.

Each level writes whole documents. A deeper level keeps the format above it and adds words, codes and correlations of its
own: which dose belongs to a drug, which tracing and which code to a disease, how one physician dates and signs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

MAX_BYTES: Final = 319  # a document and its end token fit one training sequence


@dataclass(frozen=True, slots=True)
class Corpus:
    """The text of one level: `write` makes a document; every document holds each of `marks`, and none above holds any."""

    name: str
    marks: tuple[str, ...]
    write: Callable[[Random], str]

    def documents(self, count: int, *, seed: int) -> list[str]:
        """`count` different documents; the same seed gives the same ones."""
        return _distinct(self, count, Random(f"{self.name}/{seed}"), set())

    def held_out(self, count: int, *, seed: int, training: list[str]) -> list[str]:
        """`count` different documents, none of which is in `training`."""
        return _distinct(self, count, Random(f"{self.name}/held-out/{seed}"), set(training))


def _distinct(corpus: Corpus, count: int, random: Random, seen: set[str]) -> list[str]:
    found: list[str] = []
    for document in _stream(corpus, random):
        if document not in seen:
            seen.add(document)
            found.append(document)
        if len(found) == count:
            break
    return found


def _stream(corpus: Corpus, random: Random) -> Iterator[str]:
    while True:
        yield corpus.write(random)


# Everyday prose

_NAMES = ("Nora", "Tomas", "Ines", "Karl", "Mira", "Oskar", "Lena", "Pavel", "Ruth", "Emil")
_TRADES = ("baker", "ferryman", "teacher", "gardener", "miller", "clerk", "painter", "carpenter")
_PLACES = ("Harlow", "the old mill", "the market", "Westbridge", "the harbour", "the library", "Fenwick", "the station")
_GOODS = ("pears", "candles", "bread", "apples", "paper", "wool", "honey", "letters", "tools", "seeds")
_VESSELS = ("basket", "crate", "bag", "cart", "box")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_WEATHER = ("It rained until noon.", "The wind was cold.", "The morning was bright.", "Fog lay over the river.")
_VERBS = ("carried", "sold", "bought", "brought", "counted", "repaired", "found", "left")
_REASONS = ("because the bridge was closed", "since the road was wet", "before the shop opened", "after the bell rang")


def _prose(random: Random) -> str:
    pick = random.choice
    sentences = [_journey(random), pick(_WEATHER)]
    sentences += [pick((_journey, _price, _speech))(random) for _ in range(random.randint(1, 2))]
    random.shuffle(sentences)
    return " ".join(sentences)


def _journey(random: Random) -> str:
    pick = random.choice
    load = f"a {pick(_VESSELS)} of {pick(_GOODS)}"
    return f"On {pick(_DAYS)} {pick(_NAMES)} {pick(_VERBS)} {load} at {pick(_PLACES)} {pick(_REASONS)}."


def _price(random: Random) -> str:
    pick = random.choice
    return f"The {pick(_TRADES)} asked {random.randint(2, 90)} crowns for the {pick(_GOODS)}, {random.randint(3, 48)} in all."


def _speech(random: Random) -> str:
    pick = random.choice
    return f'"Keep the {pick(_GOODS)} for {pick(_NAMES)}," said the {pick(_TRADES)}, "we meet at {random.randint(1, 12)}:{random.randint(0, 59):02d}."'


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


def _vitals(random: Random) -> str:
    pressure = f"BP {random.randint(98, 178)}/{random.randint(56, 102)} mmHg"
    return f"T {random.randint(360, 394) / 10:.1f}C, {pressure}, SpO2 {random.randint(89, 99)}%"


def _consultation(random: Random) -> str:
    complaint, finding, drug = random.choice(_COMPLAINTS)
    history = f"PMH: {random.choice(_HISTORIES)}."
    return (
        f"{_patient(random)}. C/o {complaint} for {random.randint(2, 14)}/7. {history} O/E: {_vitals(random)}; {finding}. "
        f"Rx {drug}, review in {random.randint(1, 6)}/52."
    )


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
    return f"{_workup(random, heart)} | {symptoms}. Rx {heart.drug}, review in {random.randint(1, 6)}/52."


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
    Corpus("base", (), _prose),
    Corpus("domain", ("Pt ", "C/o "), _consultation),
    Corpus("subdomain", ("ECG: ", " | TTE: ", "LVEF "), _cardiology),
    Corpus("task", ("=> DIAGNOSIS [", "BECAUSE "), _diagnosis),
    Corpus("user", ("~ Pt ", "ta muchly -- Alice M. #4417"), _alice),
)
