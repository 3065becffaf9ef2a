"""The words that tasks draw from: names, nouns, colours, and words nobody has seen before.

Everything a task sorts, copies or hides in a prompt comes from here, so that the tokenizer, which is
trained on the same text, gives most of these words one token each. Invented words have several tokens;
they keep the model honest about copying what it was given and not what it knows.
"""

import random


def words_of(text: str) -> tuple[str, ...]:
    """Split at white space."""
    return tuple(text.split())


def phrases_of(text: str) -> tuple[str, ...]:
    """Split at commas; line breaks inside a phrase count as spaces."""
    return tuple(" ".join(phrase.split()) for phrase in text.split(","))


FIRST_NAMES: tuple[str, ...] = words_of("""
    Ada Adam Agnes Alan Alba Alfred Alice Alma Amir Amos Andrea Anna Anton Arlo Arthur Asha Astrid
    Aurora Axel Basil Beatrice Bella Benjamin Bernard Berta Bianca Boris Bruno Camila Carl Carmen Cecil
    Celia Chandra Charles Chloe Clara Claude Conrad Cora Cyril Dagmar Daisy Damian Daniel Daphne David
    Della Dennis Diana Dmitri Dora Doris Edgar Edith Edmund Edwin Eileen Elena Eli Elias Elisa Ella
    Elmer Elsa Emil Emily Emma Enzo Erik Erna Esme Esther Ethan Eva Fabian Farah Felix Fern Fiona Flora
    Florian Frances Frank Freya Fritz Gabriel Gemma George Gerda Gilbert Gina Grace Greta Gustav Hana
    Hannah Harold Harriet Hassan Hazel Hector Heidi Helen Henry Herman Hilda Hugo Ian Ida Igor Ilse
    Imran Ines Ingrid Irene Iris Irma Isaac Ivan Ivy Jack Jacob James Jane Jasper Javier Jeanne Joan
    Joel John Jonas Joseph Josephine Judith Julia Julian June Kamal Karen Karim Karl Kate Kenji Kira
    Klara Konrad Lara Laura Layla Lea Leila Leo Leon Lena Lewis Lidia Lily Linda Liam Linus Lois Lorenzo
    Louis Louise Lucas Lucia Lucy Lukas Luna Lydia Magda Magnus Maja Malik Manuel Marco Margot Maria
    Marian Marie Mario Mark Marta Martin Mary Matilda Maurice Max Maya Mei Mercy Mia Michael Mila Mina
    Miriam Mona Monica Moses Nadia Naomi Natalie Nathan Nell Nico Nicole Nina Noah Noel Nora Norman
    Odette Olaf Olga Olive Oliver Omar Opal Orla Oscar Oswald Otis Otto Pablo Pamela Paul Paula Pearl
    Pedro Penny Percy Peter Petra Philip Phoebe Pia Quentin Rachel Rafael Ralph Ramona Raya Rebecca
    Regina Rex Rhea Rita Robert Robin Roger Roland Rosa Rose Ruben Rudolf Rufus Ruth Sabine Salim Sally
    Samir Samuel Sara Selma Sergei Sofia Sonia Stella Stefan Steven Susan Sven Sylvia Tamara Tara Teresa
    Thea Theo Thomas Tilda Timothy Tina Tobias Tom Tove Ulla Umar Una Ursula Vera Victor Viola Violet
    Vivian Wanda Walter Wilma Winston Xavier Yara Yasmin Yolanda Yusuf Zara Zelda Zoe
    """)

SURNAMES: tuple[str, ...] = words_of("""
    Abbott Ashdown Barlow Becker Birch Brandt Calder Carver Colby Crane Dalton Drake Ekman Farrow
    Fielding Finch Garnet Hale Harper Hobbs Ivers Jensen Keller Kline Larkin Lund Marsh Mercer Moreau
    Nash Norberg Oakes Orton Pike Porter Quill Reed Rowan Sato Sawyer Sharpe Silva Stone Tanner Thorne
    Vale Varga Weaver Winter Yates
    """)

NOUNS: tuple[str, ...] = words_of("""
    acorn almond amber anchor ant apple apricot apron arch arrow ash badger bag ball bamboo banana band
    bank barn barrel basket bat bean bear beaver bed bee beetle bell belt bench berry bike bird blanket
    boat bone book boot bottle bowl box branch bread brick bridge broom brush bucket bus butter button
    cabin cable cactus cake camel camera candle canoe cap car card carpet carrot cart castle cat cave
    chain chair chalk cheese cherry chest chicken church circle clam clay cliff clock cloth cloud clover
    coach coal coat coconut coin comb copper coral cork corn cotton couch cow crab cradle crayon cream
    crow crown cup curtain cushion daisy deer desk dice dish dog doll dolphin donkey door dove dragon
    drawer dress drum duck dust eagle ear egg elbow elephant elm engine envelope fan farm feather fence
    fern ferry field fig finger fire fish flag flame flower flute fog foot forest fork fountain fox frog
    fruit garden garlic gate ghost giraffe glass glove goat gold goose grape grass guitar hammer hat
    hawk hay heart hedge helmet hen hill honey hook horn horse hotel house ice igloo ink iron island
    jacket jar jelly jewel jug juice jungle kettle key kite kitten knee knife ladder lake lamb lamp
    lantern leaf leather lemon letter lighthouse lime lion lizard lock log lump magnet map maple marble
    market mask meadow melon milk mill mirror mole money monkey moon moss moth mountain mouse mud mug
    mushroom nail napkin necklace needle nest net night nose nut oak oar ocean olive onion orange
    orchard otter oven owl ox paddle page paint palace palm pan panda paper parrot path peach peanut
    pear pebble pen pencil pepper piano pig pigeon pillow pine pipe pirate plane planet plate plough
    plum pocket pond pony pot potato pumpkin purse queen quilt rabbit radio raft rain rat raven ribbon
    rice ring river road robin rocket roof rope rose rug ruler sack saddle sail salmon salt sand scarf
    school scissors sea seal seed shadow shark sheep shelf shell ship shirt shoe shovel silk silver sink
    skirt sky sled snail snake snow soap sock sofa soup spade sparrow spider spoon spring squirrel
    stable stamp star statue steam stick stone stove straw stream street string sugar sun swan sword
    table tail tea tent thread throne thumb tiger toast tomato tooth torch towel tower toy train tree
    trout truck trumpet tulip tunnel turnip turtle umbrella valley van vase veil village violin wagon
    wall walnut watch water wave whale wheat wheel whistle willow wind window wing wolf wood wool worm
    yarn zebra
    """)

COLOURS: tuple[str, ...] = words_of(
    "red blue green yellow purple orange pink brown black white grey gold silver violet"
)
ANIMALS: tuple[str, ...] = words_of("""
    cat dog horse fox owl otter rabbit bear wolf deer goat sheep duck swan eagle tiger lion whale panda
    """)
FRUITS: tuple[str, ...] = words_of("apple pear plum peach cherry grape lemon banana melon fig apricot lime")
DAYS: tuple[str, ...] = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: tuple[str, ...] = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
NUMBER_WORDS: tuple[str, ...] = words_of("zero one two three four five six seven eight nine ten eleven twelve")

_ONSETS = words_of("b c d f g h j k l m n p r s t v w z br ch cr dr fl gr kl pr sh st th tr")
_VOWELS = words_of("a e i o u a e i o ai ea ou")
_CODAS = ("", "", "", "n", "r", "l", "s", "m", "k", "nd", "rt", "x")


def invented_word(rng: random.Random) -> str:
    """Make up a lower-case word of two or three syllables, such as "brinola"."""
    syllables = rng.choice((2, 2, 3))
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + (rng.choice(_CODAS) if i == syllables - 1 else "")
        for i in range(syllables)
    )


def invented_name(rng: random.Random) -> str:
    """Make up a capitalised name."""
    return invented_word(rng).capitalize()


def any_name(rng: random.Random) -> str:
    """Draw a first name: one from the list, or every fifth time an invented one."""
    return invented_name(rng) if rng.random() < 0.2 else rng.choice(FIRST_NAMES)


def any_word(rng: random.Random) -> str:
    """Draw a noun from the list, or every fifth time an invented word."""
    return invented_word(rng) if rng.random() < 0.2 else rng.choice(NOUNS)


def digits(rng: random.Random, length: int) -> str:
    """Draw a string of digits that does not start with zero."""
    return str(rng.randrange(10 ** (length - 1), 10**length))


def english_list(items: list[str]) -> str:
    """Join as prose does: "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
