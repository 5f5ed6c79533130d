"""Sentences of the mini corpus: digits, times, dates, amounts and commands from a small grammar."""

import hashlib

ONES = "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()
TEENS = ("TEN ELEVEN TWELVE THIRTEEN FOURTEEN FIFTEEN SIXTEEN SEVENTEEN EIGHTEEN NINETEEN").split()
TENS = "TWENTY THIRTY FORTY FIFTY SIXTY SEVENTY EIGHTY NINETY".split()
WORDS = {
    "digit": ["ZERO", *ONES],
    "hour": [*ONES, "TEN", "ELEVEN", "TWELVE"],
    "minute": ["FIVE", "TEN", "FIFTEEN", "TWENTY", "TWENTY FIVE", "THIRTY", "FORTY", "FIFTY"],
    "part": ["IN THE MORNING", "IN THE AFTERNOON", "IN THE EVENING", "AT NIGHT"],
    "day": "MONDAY TUESDAY WEDNESDAY THURSDAY FRIDAY SATURDAY SUNDAY TODAY TOMORROW".split(),
    "month": (
        "JANUARY FEBRUARY MARCH APRIL MAY JUNE JULY AUGUST SEPTEMBER OCTOBER NOVEMBER DECEMBER"
    ).split(),
    "nth": "FIRST SECOND THIRD FOURTH FIFTH SIXTH SEVENTH EIGHTH NINTH TENTH TWENTIETH".split(),
    "name": [
        *"ANNA PETER MARY JOHN SUSAN DAVID LAURA ROBERT JULIA THOMAS HELEN GEORGE".split(),
        *("MY MOTHER", "MY FATHER", "MY SISTER", "MY BROTHER", "THE OFFICE", "THE DOCTOR"),
    ],
    "room": "KITCHEN BEDROOM BATHROOM GARAGE GARDEN HALL OFFICE".split(),
    "device": "LIGHT LAMP FAN HEATER RADIO TELEVISION CAMERA".split(),
    "switch": ["ON", "OFF"],
    "colour": "RED GREEN BLUE YELLOW WHITE ORANGE PURPLE".split(),
    "music": "JAZZ ROCK CLASSICAL POP FOLK PIANO".split(),
    "city": "LONDON PARIS BERLIN ROME MADRID BOSTON CHICAGO SYDNEY".split(),
    "food": "BREAD MILK CHEESE APPLES COFFEE TEA SUGAR RICE EGGS BUTTER".split(),
    "unit": ["MINUTES", "SECONDS", "HOURS"],
    "money": ["DOLLARS", "POUNDS", "EUROS"],
    "weather": "RAIN SNOW SUN WIND FOG".split(),
    "vehicle": "TRAIN BUS PLANE TAXI".split(),
    "direction": "LEFT RIGHT UP DOWN".split(),
    "door": "DOOR WINDOW GATE".split(),
    "open": ["OPEN", "CLOSE", "LOCK"],
}

TEMPLATES = (
    "{digits}",
    "CALL {digits}",
    "MY NUMBER IS {digits}",
    "THE CODE IS {digits}",
    "IT IS {time}",
    "SET AN ALARM FOR {time}",
    "WAKE ME UP AT {time} {day}",
    "REMIND ME TO CALL {name} AT {time}",
    "MEET {name} ON THE {nth} OF {month}",
    "THE MEETING IS ON {day} {part}",
    "TODAY IS THE {nth} OF {month}",
    "SET A TIMER FOR {number} {unit}",
    "IT COSTS {number} {money}",
    "PAY {number} {money} TO {name}",
    "TURN {switch} THE {room} {device}",
    "TURN THE {device} IN THE {room} {switch}",
    "MAKE THE {room} {device} {colour}",
    "SET THE {room} TO {number} DEGREES",
    "{open} THE {room} {door}",
    "PLAY SOME {music} MUSIC IN THE {room}",
    "TURN THE VOLUME {direction} TO {number}",
    "WHAT IS THE WEATHER IN {city} {day}",
    "WILL THERE BE {weather} IN {city} {day} {part}",
    "ADD {food} AND {food} TO MY LIST",
    "PLEASE BUY {number} {food}",
    "WHEN DOES THE {vehicle} TO {city} LEAVE",
    "BOOK A {vehicle} FROM {city} TO {city} ON {day}",
    "SEND A MESSAGE TO {name} ABOUT THE {food}",
    "MY BIRTHDAY IS ON THE {nth} OF {month}",
    "BOOK A TABLE FOR {number} ON THE {nth} OF {month}",
    "GO {direction} AND THEN {direction} AFTER {number} METERS",
    "HOW FAR IS {city} FROM {city}",
    "STOP THE {music} MUSIC IN THE {room}",
)

SHARES = {"test": 12, "dev": 8}  # of 100 sentences; the others are for training


def sentence(random):
    """Draws a sentence.

    Arguments
    ---------
    random : random.Random

    Returns
    -------
    str
        Uppercase words.
    """
    text = random.choice(TEMPLATES)
    while "{" in text:
        slot = text[text.index("{") + 1 : text.index("}")]
        text = text.replace("{" + slot + "}", _fill(slot, random), 1)
    return text


def split_of(text):
    """Returns the only split in which a sentence may occur."""
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 100
    for split, limit in (("test", 0), ("dev", SHARES["test"])):
        if limit <= share < limit + SHARES[split]:
            return split
    return "train"


def _fill(slot, random):
    if slot == "digits":
        return " ".join(random.choice(WORDS["digit"]) for _ in range(random.randint(3, 7)))
    if slot == "number":
        return _number(random)
    if slot == "time":
        hour = random.choice(WORDS["hour"])
        return random.choice(
            (
                f"{hour} {random.choice(WORDS['minute'])}",
                f"{hour} O'CLOCK",
                f"HALF PAST {hour}",
                f"A QUARTER TO {hour}",
            )
        )
    return random.choice(WORDS[slot])


def _number(random):
    kind = random.randrange(3)
    if kind == 0:
        return random.choice(ONES[1:])
    if kind == 1:
        return random.choice(TEENS)
    tens = random.choice(TENS)
    return tens if random.random() < 0.4 else f"{tens} {random.choice(ONES)}"
