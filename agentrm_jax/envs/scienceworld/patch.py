"""Two small additions to classes of the simulator: the same again gives the same, and faster.

ScienceWorld keeps its objects in hash sets. `EnvObject` says what is equal (`equals`) but not the
hash that goes with it, so Java takes one that differs each time: sets are then walked in another
order, texts list things in another order, heat flows in another order, and the second replay of an
episode differs from the first. The missing method is put in: an object's hash is its number
(`uuid`), which the simulator counts from 1 in each episode.

To find what an action means the simulator splits every name of every thing in sight into words
(`InputParser.tokenize`), again and again: two thirds of a step. The method gets a memory.

Nothing else is touched. The file of the package is not changed: the classes are written to a
folder that Java searches first.
"""

from __future__ import annotations

import struct

HASHED_CLASS = "scienceworld/struct/EnvObject"
PARSER_CLASS = "scienceworld/input/InputParser$"
MEMORY_FIELD = "remembered"
"""A field of the parser for a `java.util.HashMap`; to be set before the first action."""

# Constants of a class file: tag -> size in bytes; tag 1, a text, says its own.
_SIZES = {3: 5, 4: 5, 5: 9, 6: 9, 7: 3, 8: 3, 9: 5, 10: 5, 11: 5, 12: 5, 15: 4, 16: 3, 17: 5, 18: 5,
          19: 3, 20: 3}  # fmt: skip
_TEXT, _TWO_PLACES = 1, (5, 6)
_PUBLIC = 1
_TOKENIZE = ("tokenize", "(Ljava/lang/String;)[Ljava/lang/String;")


def with_hash(data: bytes) -> bytes:
    """`EnvObject` with `public int hashCode() { return (int) this.uuid(); }`.

    Raises:
      ValueError: It is not a class file, has no `uuid`, or has a `hashCode` already.
    """
    file = _ClassFile(data)
    if file.has_method("hashCode", "()I") or not file.has_method("uuid", "()J"):
        raise ValueError("EnvObject is not as it was in 1.2.3: uuid and no hashCode")
    uuid = file.member("Methodref", file.name, "uuid", "()J")
    code = struct.pack(">BBHBB", 0x2A, 0xB6, uuid, 0x88, 0xAC)  # this.uuid() as int, returned
    file.add_method("hashCode", "()I", code, stack=2, variables=1)
    return file.written()


def with_memory(data: bytes) -> bytes:
    """`InputParser$` whose `tokenize` looks into a map first; `tokenize2` does the work.

        public HashMap remembered;
        public String[] tokenize(String text) {
            Object words = this.remembered.get(text);
            if (words == null) {
                words = this.tokenize2(text);
                this.remembered.put(text, words);
            }
            return (String[]) words;
        }

    Raises:
      ValueError: It is not a class file or has no `tokenize`.
    """
    file = _ClassFile(data)
    name, kind = _TOKENIZE
    if not file.has_method(name, kind):
        raise ValueError("InputParser is not as it was in 1.2.3: tokenize")
    file.rename_method(name, kind, f"{name}2")
    file.add_field(MEMORY_FIELD, "Ljava/util/HashMap;")
    memory = file.member("Fieldref", file.name, MEMORY_FIELD, "Ljava/util/HashMap;")
    works = file.member("Methodref", file.name, f"{name}2", kind)
    both = "(Ljava/lang/Object;Ljava/lang/Object;)Ljava/lang/Object;"
    get = file.member(
        "Methodref", "java/util/HashMap", "get", "(Ljava/lang/Object;)Ljava/lang/Object;"
    )
    put = file.member("Methodref", "java/util/HashMap", "put", both)
    words = file.class_constant("[Ljava/lang/String;")
    anything = file.class_constant("java/lang/Object")
    code = b"".join(
        [
            struct.pack(">BBHBBHB", 0x2A, 0xB4, memory, 0x2B, 0xB6, get, 0x4D),  # words = ...get
            struct.pack(">BBH", 0x2C, 0xC7, 19),  # if it is there: to the last line
            struct.pack(">BBBHB", 0x2A, 0x2B, 0xB6, works, 0x4D),
            struct.pack(">BBHBBBHB", 0x2A, 0xB4, memory, 0x2B, 0x2C, 0xB6, put, 0x57),
            struct.pack(">BBHB", 0x2C, 0xC0, words, 0xB0),
        ]
    )
    # Java wants to be told that `words` is an object where the two ways meet, at byte 29.
    frame = struct.pack(">HBHBH", 1, 252, 29, 7, anything)
    file.add_method(name, kind, code, stack=3, variables=3, frames=frame)
    return file.written()


class _ClassFile:
    """A compiled class to which constants, fields and methods are added."""

    def __init__(self, data: bytes) -> None:
        if data[:4] != b"\xca\xfe\xba\xbe":
            raise ValueError("not a class file")
        self._data = data
        self._pool_end, self._count, self._texts, classes = _constants(data)
        self.name = self._texts[classes[self._u2(self._pool_end + 2)]]
        self._fields = self._pool_end + 8 + 2 * self._u2(self._pool_end + 6)
        _, self._methods = self._members(self._fields)
        self._places, self._end = self._members(self._methods)
        self._constants: list[bytes] = []
        self._new_fields: list[bytes] = []
        self._new_methods: list[bytes] = []
        self._renamed: dict[int, int] = {}  # place of a method -> constant of its new name

    def has_method(self, name: str, kind: str) -> bool:
        return (name, kind) in self._places

    def rename_method(self, name: str, kind: str, new: str) -> None:
        self._renamed[self._places[name, kind]] = self._text(new)

    def add_field(self, name: str, kind: str) -> None:
        names = self._text(name), self._text(kind)
        self._new_fields.append(struct.pack(">HHHH", _PUBLIC, *names, 0))

    def add_method(
        self, name: str, kind: str, code: bytes, *, stack: int, variables: int, frames: bytes = b""
    ) -> None:
        body = struct.pack(">HHI", stack, variables, len(code)) + code + bytes(2)
        attributes = []
        if frames:
            head = struct.pack(">HI", self._text("StackMapTable"), len(frames))
            attributes.append(head + frames)
        body += struct.pack(">H", len(attributes)) + b"".join(attributes)
        names = self._text(name), self._text(kind), 1, self._text("Code")
        self._new_methods.append(struct.pack(">HHHHHI", _PUBLIC, *names, len(body)) + body)

    def class_constant(self, name: str) -> int:
        return self._constant("BH", 7, self._text(name))

    def member(self, what: str, owner: str, name: str, kind: str) -> int:
        """A constant that refers to a field or method."""
        named = self._constant("BHH", 12, self._text(name), self._text(kind))
        tag = {"Fieldref": 9, "Methodref": 10}[what]
        return self._constant("BHH", tag, self.class_constant(owner), named)

    def written(self) -> bytes:
        data = bytearray(self._data)
        for place, name in self._renamed.items():
            struct.pack_into(">H", data, place + 2, name)
        fields = self._u2(self._fields) + len(self._new_fields)
        methods = self._u2(self._methods) + len(self._new_methods)
        return b"".join(
            [
                data[:8],
                struct.pack(">H", self._count + len(self._constants)),
                data[10 : self._pool_end],
                *self._constants,
                data[self._pool_end : self._fields],
                struct.pack(">H", fields),
                data[self._fields + 2 : self._methods],
                *self._new_fields,
                struct.pack(">H", methods),
                data[self._methods + 2 : self._end],
                *self._new_methods,
                data[self._end :],
            ]
        )

    def _constant(self, form: str, *values: int | bytes) -> int:
        self._constants.append(struct.pack(">" + form, *values))
        return self._count + len(self._constants) - 1

    def _text(self, value: str) -> int:
        return self._constant(f"BH{len(value)}s", _TEXT, len(value), value.encode())

    def _members(self, position: int) -> tuple[dict[tuple[str, str], int], int]:
        """Places of fields or methods by name and kind, and where their list ends."""
        count, position = self._u2(position), position + 2
        places = {}
        for _ in range(count):
            named = self._texts[self._u2(position + 2)], self._texts[self._u2(position + 4)]
            places[named] = position
            attributes, position = self._u2(position + 6), position + 8
            for _ in range(attributes):
                position += 6 + struct.unpack_from(">I", self._data, position + 2)[0]
        return places, position

    def _u2(self, position: int) -> int:
        return struct.unpack_from(">H", self._data, position)[0]


def _constants(data: bytes) -> tuple[int, int, dict[int, str], dict[int, int]]:
    """Returns the end of the constants, their count in the file, texts and classes by number."""
    count, position, number = struct.unpack_from(">H", data, 8)[0], 10, 1
    texts: dict[int, str] = {}
    classes: dict[int, int] = {}
    while number < count:
        tag, value = data[position], struct.unpack_from(">H", data, position + 1)[0]
        if tag == _TEXT:
            size = 3 + value
            texts[number] = data[position + 3 : position + size].decode(errors="replace")
        elif tag in _SIZES:
            size = _SIZES[tag]
        else:
            raise ValueError(f"unknown constant {tag}")
        if tag == 7:
            classes[number] = value
        position += size
        number += 2 if tag in _TWO_PLACES else 1
    return position, count, texts, classes
