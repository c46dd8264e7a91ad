"""Captions and the phrases that they should give.

`TUNED` were looked at while the rule was made. `HELD_OUT` were written before and not looked at:
15 of 16 were right. Captions of photographs came later: 31 of 35 were right, 34 after the rule
learned of "the back tire", "a long row of" and "that seems" (`SEEN_LATER`: those that have more
than the easy words). What is still wrong is in `KNOWN_WRONG`, with what comes out.
"""

HELD_OUT = {
    "A man in a blue shirt is throwing a white frisbee to his brown dog.": [
        "man",
        "blue shirt",
        "white frisbee",
        "brown dog",
    ],
    "A bathroom with a toilet, a sink and a large mirror": [
        "bathroom",
        "toilet",
        "sink",
        "large mirror",
    ],
    "An old wooden boat tied to a dock at sunset": ["old wooden boat", "dock", "sunset"],
    "The woman's umbrella is blocking the sun": ["woman's umbrella", "sun"],
    "a stop sign that has been covered with stickers": ["stop sign", "stickers"],
    "laptop . coffee mug . a half-eaten croissant": [
        "laptop",
        "coffee mug",
        "a half-eaten croissant",
    ],
    "A young girl who wears pink boots jumps into a puddle": ["young girl", "pink boots", "puddle"],
    "several people skiing down a snowy mountain": ["people", "snowy mountain"],
    "There are three yellow taxis parked along the street": ["yellow taxis", "street"],
    "a black and white cat lying on top of a keyboard": ["black and white cat", "keyboard"],
    "A close-up of a pizza with mushrooms, olives, and melted cheese": [
        "pizza",
        "mushrooms",
        "olives",
        "melted cheese",
    ],
    "A plane flies over the city while birds rest on the wires": [
        "plane",
        "city",
        "birds",
        "wires",
    ],
    "the left hand of the tennis player": ["left hand", "tennis player"],
    "Kids' bicycles leaning against a brick wall next to an open gate": [
        "Kids' bicycles",
        "brick wall",
        "open gate",
    ],
    "A bus driving down a busy street past a tall building": [
        "bus",
        "busy street",
        "tall building",
    ],
}

TUNED = {
    "a dog chasing a red ball": ["dog", "red ball"],
    "cat . red ball . dog": ["cat", "red ball", "dog"],
    "cat . red ball . dog .": ["cat", "red ball", "dog"],
    "cat, red ball": ["cat", "red ball"],
    "cat. red ball. dog.": ["cat", "red ball", "dog"],
    "a red ball and a blue ball": ["red ball", "blue ball"],
    "a ball left of a ball": ["ball"],
    "There is two cat and a remote in the picture": ["cat", "remote"],
    "a cyan square and an orange ring": ["cyan square", "orange ring"],
    "a photo of a T-shirt": ["T-shirt"],
    "the dog's tail": ["dog's tail"],
    "A naïve café owner holding a crème brûlée": ["naïve café owner", "crème brûlée"],
    "A group of people standing in front of a fountain": ["people", "fountain"],
    "a building with a clock tower": ["building", "clock tower"],
    "the king wearing a gold ring": ["king", "gold ring"],
    "a man riding a horse on the beach": ["man", "horse", "beach"],
    "man riding bike": ["man", "bike"],
    "A cat sits on a mat": ["cat", "mat"],
    "a car parked on the street": ["car", "street"],
    "a wooden bed on the floor": ["wooden bed", "floor"],
    "the sky is blue": ["sky"],
    "an orange on a plate": ["orange", "plate"],
    "a dining table with four chairs": ["dining table", "chairs"],
    "two dogs run across the grass": ["dogs", "grass"],
    "a brightly colored bird": ["colored bird"],
    "a glass of wine": ["glass", "wine"],
    "a person dressed in red": ["person"],
    "a slice of pizza on a paper plate": ["slice", "pizza", "paper plate"],
    "a traffic light to the left of a tree": ["traffic light", "tree"],
    "a sleeping cat": ["sleeping cat"],
    "2 dogs and 1 cat": ["dogs", "cat"],
    "a Boeing 747 on the runway": ["Boeing 747", "runway"],
    "A cat & a dog": ["cat", "dog"],
    "a boy trying to catch a baseball": ["boy", "baseball"],
    "the man is wearing sunglasses": ["man", "sunglasses"],
    "people playing frisbee in the park": ["people", "frisbee", "park"],
    "red, yellow and green umbrella": ["red, yellow and green umbrella"],
    "A dog, and another dog (a small dog)": ["dog", "small dog"],
    "It's a cat; it isn't a dog": ["cat", "dog"],
    "a woman walking her dog down the road": ["woman", "dog", "road"],
    "猫 . 赤いボール": ["猫", "赤いボール"],
    "dog+frisbee . tree": ["dog+frisbee", "tree"],
}

SEEN_LATER = {
    "A man with a red helmet on a small moped on a dirt road. ": [
        "man",
        "red helmet",
        "small moped",
        "dirt road",
    ],
    "a boy wearing headphones using one computer in a long row of computers": [
        "boy",
        "headphones",
        "computer",
        "long row",
        "computers",
    ],
    "This wire metal rack holds several pairs of shoes and sandals": [
        "wire metal rack",
        "shoes",
        "sandals",
    ],
    "The back tire of an old style motorcycle is resting in a metal stand. ": [
        "back tire",
        "old style motorcycle",
        "metal stand",
    ],
    "Blue and white color scheme in a small bathroom.": [
        "Blue and white color scheme",
        "small bathroom",
    ],
    "A car that seems to be parked illegally behind a legally parked car": ["car", "parked car"],
    "Dog snoozing by a bike on the edge of a cobblestone street": [
        "Dog",
        "bike",
        "cobblestone street",
    ],
    "A bunch of bananas are hanging on a ceiling.": ["bananas", "ceiling"],
    "A cat sitting on a toilet seat that is half open.": ["cat", "toilet seat"],
    "a lamp on the left side table in the front yard": ["lamp", "left side table", "front yard"],
}

KNOWN_WRONG = {
    "Two zebras and a giraffe graze near a watering hole.": (
        ["zebras", "giraffe", "watering hole"],
        ["zebras", "giraffe graze", "watering hole"],
    ),
    "An airplane that is, either, landing or just taking off.": (
        ["airplane"],
        ["airplane", "landing"],
    ),
    "a dog herds sheep": (["dog", "sheep"], ["dog herds sheep"]),
    "un chien et un ballon rouge": (
        ["chien", "ballon rouge"],
        ["un chien et un ballon rouge"],
    ),
}
"""What is meant, and what comes out."""
