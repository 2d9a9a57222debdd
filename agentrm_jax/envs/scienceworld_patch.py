"""One method more in one class of the simulator, so that doing the same again gives the same.

ScienceWorld keeps its objects in hash sets. `EnvObject` says what is equal (`equals`) but not the
hash that goes with it, so Java takes one that differs each time: sets are then walked in another
order, texts list things in another order, heat flows in another order, the second replay of an
episode differs from the first. The missing method is put in here: an object's hash is its number
(`uuid`), which the simulator counts from 1 in each episode. Nothing else is touched, and the file
of the package is not changed: the class with the method is written to a folder that Java is told
to look into first.
"""

from __future__ import annotations

import struct

CLASS = "scienceworld/struct/EnvObject"

# Constants of a class file: tag -> size in bytes; tag 1, a text, says its own.
_SIZES = {3: 5, 4: 5, 5: 9, 6: 9, 7: 3, 8: 3, 9: 5, 10: 5, 11: 5, 12: 5, 15: 4, 16: 3, 17: 5, 18: 5,
          19: 3, 20: 3}  # fmt: skip
_TEXT, _TWO_PLACES = 1, (5, 6)
_PUBLIC = 1


def with_hash(data: bytes) -> bytes:
    """The class file with `public int hashCode() { return (int) this.uuid(); }`.

    A class file that has a method of this name is given back as it is.

    Raises:
      ValueError: It is not a class file with a method `uuid`.
    """
    pool_end, count, texts = _constants(data)
    if "hashCode" in texts:
        return data
    if "uuid" not in texts:
        raise ValueError("the class has no uuid")
    this = _u2(data, pool_end + 2)
    fields = pool_end + 8 + 2 * _u2(data, pool_end + 6)
    methods = _after_members(data, fields)
    end = _after_members(data, methods)

    added: list[bytes] = []

    def constant(form: str, *values: int | bytes) -> int:
        added.append(struct.pack(">" + form, *values))
        return count + len(added) - 1

    def text(value: bytes) -> int:
        return constant(f"BH{len(value)}s", _TEXT, len(value), value)

    name, kind, code = text(b"hashCode"), text(b"()I"), text(b"Code")
    uuid = constant("BHH", 12, text(b"uuid"), text(b"()J"))
    call = constant("BHH", 10, this, uuid)
    body = struct.pack(">BBHBB", 0x2A, 0xB6, call, 0x88, 0xAC)  # aload_0, call, l2i, ireturn
    attribute = struct.pack(">HHI", 2, 1, len(body)) + body + bytes(4)
    method = struct.pack(">HHHHHI", _PUBLIC, name, kind, 1, code, len(attribute)) + attribute
    return b"".join(
        [
            data[:8],
            struct.pack(">H", count + len(added)),
            data[10:pool_end],
            *added,
            data[pool_end:methods],
            struct.pack(">H", _u2(data, methods) + 1),
            data[methods + 2 : end],
            method,
            data[end:],
        ]
    )


def _constants(data: bytes) -> tuple[int, int, set[str]]:
    """Where the constants end, their count as the file has it, and the texts among them."""
    if data[:4] != b"\xca\xfe\xba\xbe":
        raise ValueError("not a class file")
    count, position, number = _u2(data, 8), 10, 1
    texts = set()
    while number < count:
        tag = data[position]
        if tag == _TEXT:
            size = 3 + _u2(data, position + 1)
            texts.add(data[position + 3 : position + size].decode(errors="replace"))
        elif tag in _SIZES:
            size = _SIZES[tag]
        else:
            raise ValueError(f"unknown constant {tag}")
        position += size
        number += 2 if tag in _TWO_PLACES else 1
    return position, count, texts


def _after_members(data: bytes, position: int) -> int:
    """Where a list of fields or methods ends that begins at `position`."""
    members, position = _u2(data, position), position + 2
    for _ in range(members):
        attributes, position = _u2(data, position + 6), position + 8
        for _ in range(attributes):
            position += 6 + struct.unpack_from(">I", data, position + 2)[0]
    return position


def _u2(data: bytes, position: int) -> int:
    return struct.unpack_from(">H", data, position)[0]
