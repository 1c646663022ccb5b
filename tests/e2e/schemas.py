"""Random JSON schemas of which every value is short: seeded, nested four deep at most, no recursion."""

DEPTH_MAX = 4
# Leaves of one schema: bounds the tokens of its values.
LEAVES_MAX = 12
NAMES = ["name", "age", "city", "tags", "id", "email", "ok", "größe", "unit price", "x-y", "items", "kind", "note", "a\"b"]
PATTERNS = ["^[a-z]{2,6}$", "^[0-9]{3}-[0-9]{4}$", "^(red|green|blue)$", "^[A-Z][a-z]{1,8}$", "^v[0-9]{1,3}(\\.[0-9]){0,2}$"]
WORDS = ["red", "green", "a longer text", "ünïcode", "", "with \"quotes\"", "back\\slash", "line\nbreak", "🗼"]


def random_schema(rng):
    """An object at the top, as structured output demands it."""
    maker = Maker(rng)
    defs = {f"def{number}": maker.leaf() for number in range(rng.randrange(3))}
    maker.refs = [f"#/$defs/{name}" for name in defs]
    schema = maker.object(1)
    return schema | ({"$defs": defs} if defs else {})


class Maker:
    def __init__(self, rng):
        self.rng, self.refs, self.leaves = rng, [], LEAVES_MAX

    def any(self, depth):
        kinds = [self.leaf] * 4
        if depth < DEPTH_MAX and self.leaves > 2:
            kinds += [self.object, self.object, self.array, self.tuple, self.either]
        kind = self.rng.choice(kinds)
        return self.leaf() if kind == self.leaf else kind(depth + 1)

    def object(self, depth):
        names = self.rng.sample(NAMES, self.rng.randint(1, 4))
        properties = {}
        for name in names:
            if not properties or self.leaves > 0:
                properties[name] = self.any(depth)
        required = [name for name in properties if self.rng.random() < 0.7]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def array(self, depth):
        items = self.any(depth)
        most = self.rng.randint(1, 3)
        return {"type": "array", "items": items, "minItems": self.rng.randint(0, most), "maxItems": most}

    def tuple(self, depth):
        parts = [self.any(depth) for _ in range(self.rng.randint(1, 3))]
        return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}

    def either(self, depth):
        return {"anyOf": [self.any(depth) for _ in range(self.rng.randint(2, 3))]}

    def leaf(self):
        self.leaves -= 1
        low = self.rng.choice([-1000, -7, 0, 1, 18, 100])
        shortest = self.rng.randint(0, 3)
        leaves = [
            {"type": "string", "minLength": shortest, "maxLength": shortest + self.rng.randint(1, 12)},
            {"type": "string", "maxLength": self.rng.randint(1, 12)},
            {"type": "string", "enum": self.rng.sample(WORDS, 3)},
            {"type": "string", "pattern": self.rng.choice(PATTERNS)},
            {"type": "integer", "minimum": low, "maximum": low + self.rng.choice([0, 5, 99, 12345])},
            {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + 50},
            {"type": "number", "minimum": low, "maximum": low + 2.5},
            {"type": "boolean"},
            {"type": "null"},
            {"const": self.rng.choice([*WORDS, 42, True, None])},
            {"enum": [1, "one", None, False]},
            {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
        ]
        leaves += [{"$ref": self.rng.choice(self.refs)} for _ in range(2) if self.refs]
        return self.rng.choice(leaves)
