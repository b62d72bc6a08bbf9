"""The jobs that a shop sends on an ordinary morning: three teams, one system prompt each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain


@dataclass(frozen=True, slots=True)
class ShopJob:
    """One question to one team; the system prompt is shared by all jobs of the team."""

    team: str
    system: str
    question: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat as both the bus and the taxi get it."""
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": self.question},
        ]


SUPPORT = """\
You are the support desk of Larkfield, a shop for hiking, cycling and camping gear in Bristol. \
Answer in at most five sentences, warmly and plainly, and always end with one concrete next step.
Facts you may rely on:
- Orders placed before 14:00 leave the same day. Standard delivery takes two to three working \
days, express delivery arrives the next working day and costs 6 pounds.
- Unused goods can be returned within 60 days; the return label is free and is printed from the \
order page. Refunds reach the customer's bank four working days after we receive the parcel.
- Tents, stoves and bicycle parts carry a five-year guarantee against faults, not against wear.
- The repair workshop mends zips, poles and seams for 12 pounds and needs about one week.
- Never ask for a card number or a password. If you do not know something, say so and offer that \
a colleague writes back within one working day."""

RECOMMEND = """\
You are the shop assistant of Larkfield, a shop for hiking, cycling and camping gear. Recommend at \
most two products from the shelf below, say in one sentence each why they fit, and name the price. \
If nothing fits, say what to look for instead.
The shelf:
- Fenn 2: tent for two, 1.9 kg, 240 pounds. Fenn 4: tent for four, 4.1 kg, 390 pounds.
- Tarn rucksack 28 litres, 65 pounds. Tarn rucksack 55 litres with rain cover, 140 pounds.
- Moss down sleeping bag, comfort -4 degrees, 190 pounds. Moss Light, comfort 8 degrees, 95 pounds.
- Crag boots, leather, waterproof, 155 pounds. Dash trail shoes, mesh, 89 pounds.
- Ember gas stove, boils a litre in four minutes, 38 pounds. Ember Pot set, 29 pounds.
- Kite rain jacket, 320 g, 110 pounds. Drover winter parka, 220 pounds.
- Spoke city bicycle lights, 35 pounds. Spoke waterproof panniers, pair, 78 pounds."""

CONTENT = """\
You write the words of Larkfield, a shop for hiking, cycling and camping gear. The voice is calm, \
precise and a little dry; it knows the weather. Write British English. Use short sentences and \
plain verbs. Name one thing the reader can do with the product outdoors, and one detail of how it \
is made. Do not use exclamation marks, superlatives, hashtags or the words perfect, ultimate, \
adventure and game-changer. Do not invent prices, awards, certificates or reviews. Product texts \
have about eighty words in one paragraph; subject lines have at most eight words; social posts \
have two sentences. Give only the text that was asked for, without a heading or a comment."""

_QUESTIONS = {
    ("support", SUPPORT): (
        "I ordered a tent yesterday at three in the afternoon. When will it be here?",
        "One of the poles of my tent snapped in the wind after two years. Is that covered?",
        "How do I send back a pair of boots that are half a size too small?",
        "The zip of my rucksack is stuck and I leave for Scotland in ten days. Can you mend it?",
        "I was charged twice for the same order. What should I do now?",
        "My refund has not arrived and I posted the parcel last Monday. Where is my money?",
        "Can I change the delivery address of an order that I placed an hour ago?",
        "The stove hisses when I screw on the gas. Is it safe to use?",
    ),
    ("recommendation", RECOMMEND): (
        "I cycle to work in the rain, five miles each way, with a laptop. What do I need?",
        "We are two adults and two children camping for the first time in July. Which tent?",
        "What should I wear on my feet for a wet week in the Lake District?",
        "I need a birthday present for my sister who runs on trails. I can spend 100 pounds.",
        "I get cold easily and want to sleep outside in October. Which sleeping bag?",
        "I want to cook for two on a weekend walk. What is the lightest you have?",
        "Which rucksack do you suggest for a four-day hut tour in the Alps?",
        "My old jacket leaks. I want something light that I can always carry. Any idea?",
    ),
    ("content", CONTENT): (
        "Write the product text for the Kite rain jacket, 320 grams, taped seams, made from nets.",
        "Write the product text for the Fenn 2 tent: two doors, aluminium poles, green.",
        "Write a newsletter opening about the first cold mornings of autumn.",
        "Write three subject lines for an e-mail about the boot care workshop on Saturday.",
        "Write a social post about repairing a rucksack instead of buying a new one.",
        "Write the product text for the Ember gas stove: brass burner, folds flat.",
        "Write a short note for the parcel of a customer who waited a week too long.",
        "Write the product text for the Spoke panniers: roll top, one hand opens the hook.",
    ),
}


def shop_jobs(num_jobs: int) -> list[ShopJob]:
    """Draw `num_jobs` jobs, the teams taking turns; past the last question the list repeats."""
    teams = [
        [ShopJob(team, system, question) for question in questions]
        for (team, system), questions in _QUESTIONS.items()
    ]
    ordered = list(chain.from_iterable(zip(*teams, strict=True)))
    return [ordered[i % len(ordered)] for i in range(num_jobs)]
