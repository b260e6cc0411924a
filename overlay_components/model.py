"""Stack-file keys are checked by the agent's own field types, and told in our own words.

pydantic walks the file and gives every error its path; what a value may be is said by one object
of `overlay_agent.fields` (or one here, for what only stack files have). So a kind's attributes are
listed once, in the agent, and the loader, the JSON Schema and the agent cannot disagree.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from overlay_agent import fields
from overlay_agent.fields import Type, json_name
from overlay_components import errors, names
from overlay_components.secrets import SHOWN, Value

#: What to give where a required key is missing, by that key.
_MISSING = {
    "anycast": "write anycast: true, or the address alone, as gateway: 10.10.0.1",
    "address": "give its IPv4 or IPv6 address",
    "host": "name the host that runs the container",
    "create": "write create: true, or attach: {docker: NETWORK} for a network that is there",
    "mac": "give the MAC address of its network interface",
}
_NOT_A_LIST = "is not a list; write it in brackets: [...]"
_NOT_AN_OBJECT = "is not an object; write `key: value` lines below it"
_KEY_BYTES = 32
_ENCRYPTED = "As `pulumi config set --secret` writes it"
_HOST_KEYS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")

#: One error: the path from the model's root, and the sentence.
Wrong = tuple[tuple[int | str, ...], str]
AModel = TypeVar("AModel", bound="Model")


# -- values ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Checked:
    """Annotation of a key: its value is what `type` takes."""

    type: Type

    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._normal)

    def __get_pydantic_json_schema__(self, _core: Any, _handler: Any) -> dict[str, Any]:
        return schema_of(self.type)

    def _normal(self, value: Any) -> Any:
        if isinstance(value, names.Placeholder) and _may_be_late(self.type):
            return value
        wrong = self.type.check(value)
        if wrong:
            raise stop(wrong.replace(repr(value), errors.shown(value), 1))
        return self.type.normal(value)


class Name(fields.Label):
    """What people call a host, a segment, a tunnel or a container."""

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        if not isinstance(value, str):
            return f"{value!r} is not a name; put it in quotes"
        return super().check(value)


class Text(Type):
    """A word without white space: a user, a path, a bastion."""

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        if isinstance(value, str) and value and not re.search(r"\s", value) and value.isprintable():
            return None
        return f"{value!r} is not a text without white space"


class HostAddress(fields.Address):
    """An address of a host on the underlay: one that a packet can be sent to."""

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        if super().check(value) or "%" in value:
            return f"{value!r} is not an IP address, such as 192.0.2.11 or 2001:db8::11"
        address = ipaddress.ip_address(value)
        if address.is_multicast or address.is_loopback or address.is_unspecified:
            return f"{value!r} is not an address that other hosts can send to"
        return None


class Mac(fields.Mac):
    """A MAC address, in either case."""

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        wrong = super().check(value.lower() if isinstance(value, str) else value)
        return wrong.replace(" (lower case)", "") if wrong else None

    def normal(self, value: Any) -> Any:
        """Lower case, as the kernel prints it."""
        return value.lower()


class Subnet(Type):
    """An IPv4 or IPv6 network, such as 10.10.0.0/24."""

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        try:
            network = ipaddress.ip_interface(value).network if isinstance(value, str) else None
        except ValueError:
            network = None
        if network is None or "/" not in value or "%" in value:
            return f"{value!r} is not a subnet, such as 10.10.0.0/24 or fd00:10::/64"
        if str(ipaddress.ip_interface(value).ip) != str(network.network_address):
            return f"{value!r} is not the subnet's first address; write {network}"
        if network.prefixlen == 0 or network.is_multicast or network.is_loopback:
            return f"{value!r} is not a subnet for hosts and containers"
        return None

    def normal(self, value: Any) -> Any:
        """The subnet as Python writes it."""
        return str(ipaddress.ip_network(value))


class OverlayAddress(Type):
    """An address within a segment, with or without its subnet's prefix length."""

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        try:
            good = isinstance(value, str) and "%" not in value and bool(ipaddress.ip_interface(value))
        except ValueError:
            good = False
        return None if good else f"{value!r} is not an IP address, such as 10.10.0.11"

    def normal(self, value: Any) -> Any:
        """With a prefix length only where one was given."""
        interface = ipaddress.ip_interface(value)
        return str(interface) if "/" in value else str(interface.ip)


@dataclasses.dataclass(frozen=True)
class OneOrMore(Type):
    """A value, or a list of values; always a list when read."""

    item: Type

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        values = value if isinstance(value, (list, tuple)) else [value]
        wrong = (self.item.check(v) for v in values if not isinstance(v, names.Placeholder))
        return next((w for w in wrong if w), None)

    def normal(self, value: Any) -> Any:
        """The list."""
        values = value if isinstance(value, (list, tuple)) else [value]
        return [v if isinstance(v, names.Placeholder) else self.item.normal(v) for v in values]


@dataclasses.dataclass(frozen=True)
class NumberRange(Type):
    """Numbers written "low-high". Read, it is the two of them."""

    low: int
    high: int

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        match = re.fullmatch(r"([0-9]{1,10})-([0-9]{1,10})", value) if isinstance(value, str) else None
        if match and self.low <= int(match[1]) <= int(match[2]) <= self.high:
            return None
        return f'{value!r} is not a range within {self.low}-{self.high}, such as "100-199"'

    def normal(self, value: Any) -> Any:
        """The lowest and the highest number."""
        low, high = value.split("-")
        return int(low), int(high)


class HostKey(Type):
    """An SSH host key as in known_hosts, without the host's name."""

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        parts = value.split() if isinstance(value, str) else []
        hint = "write `ssh-ed25519 AAAA...`, as `ssh-keyscan -t ed25519 HOST` prints after the host's name"
        if parts and parts[0] == "ssh-rsa":
            return f"{value!r} is an RSA key, which is not supported; take the host's ed25519 or ECDSA key: {hint}"
        if len(parts) < 2 or parts[0] not in _HOST_KEYS:
            return f"{value!r} is not a host key; {hint}"
        try:
            key = base64.b64decode(parts[1], validate=True)
        except (binascii.Error, ValueError):
            key = b""
        kind = parts[0].encode()
        if not key.startswith(len(kind).to_bytes(4, "big") + kind) or len(key) < len(kind) + 36:
            return f"{value!r} is cut off or mistyped; {hint}"
        return None

    def normal(self, value: Any) -> Any:
        """Type and key, without the comment."""
        return " ".join(value.split()[:2])


class _Secret(Type):
    """A secret: text, or what `pulumi config set --secret` made of it, {secure: ...}. Read, it is a secrets.Value.
    No sentence shows it."""

    #: What to give, in words.
    form: str

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        if isinstance(value, (Value, names.Placeholder)) or self._encrypted(value):
            return None
        if not isinstance(value, str):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            return f"{SHOWN} is not a text; {'put it in quotes' if number else f'give {self.form}'}"
        return self.wrong(value)

    def normal(self, value: Any) -> Any:
        """The Value."""
        if isinstance(value, Value):
            return value
        if isinstance(value, names.Placeholder):
            return Value(None)
        return Value(self.bytes_of(value)) if isinstance(value, str) else Value(None, self.length_of(value["secure"]))

    def wrong(self, text: str) -> str | None:
        """What is wrong with the text, or None."""
        raise NotImplementedError

    def bytes_of(self, text: str) -> bytes:
        """What the text says."""
        raise NotImplementedError

    def length_of(self, ciphertext: str) -> int | None:
        """How many bytes that is; None where it cannot be seen."""
        raise NotImplementedError

    @staticmethod
    def _encrypted(value: Any) -> bool:
        return isinstance(value, Mapping) and value.keys() == {"secure"} and isinstance(value["secure"], str)


class SecretHex(_Secret):
    """A secret of one of these lengths in bytes, as hexadecimal digits."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = lengths
        self.form = f"{' or '.join(map(str, lengths))} bytes as hex"

    def wrong(self, text: str) -> str | None:
        """Digits, and as many as there have to be."""
        if not re.fullmatch(r"[0-9A-Fa-f]*", text):
            return f"{SHOWN} is not hexadecimal; give {self.form}"
        if len(text) % 2:
            return f"{len(text)} digits; give {self.form}"
        return None if len(text) // 2 in self.lengths else f"{len(text) // 2} bytes; give {self.form}"

    def bytes_of(self, text: str) -> bytes:
        """Two digits a byte."""
        return bytes.fromhex(text)

    def length_of(self, ciphertext: str) -> int | None:
        """Pulumi's `v1:<nonce>:<AES-GCM>` is 16 bytes longer than the text."""
        try:
            length = (len(base64.b64decode(ciphertext.rpartition(":")[2], validate=True)) - 16) // 2
        except (binascii.Error, ValueError):
            return None
        return length if ciphertext.startswith("v1:") and length in self.lengths else None


class SecretKey(_Secret):
    """A secret of 32 bytes in base64, as WireGuard's tools print keys."""

    form = "32 bytes as base64, as `wg genpsk` prints"

    def wrong(self, text: str) -> str | None:
        """Base64, and of 32 bytes."""
        try:
            length = len(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError):
            return f"{SHOWN} is not base64; give {self.form}"
        return None if length == _KEY_BYTES else f"{length} bytes; give {self.form}"

    def bytes_of(self, text: str) -> bytes:
        """The 32 bytes."""
        return base64.b64decode(text)

    def length_of(self, ciphertext: str) -> int | None:  # noqa: ARG002 - every key has it
        """Always 32."""
        return _KEY_BYTES


class SecretText(_Secret):
    """A secret of at most `longest` bytes: one word of ASCII, as configuration files take it."""

    longest: int

    def wrong(self, text: str) -> str | None:
        """A word, and not too long."""
        if len(text) > self.longest:
            return f"{len(text)} characters; give {self.form}"
        return None if re.fullmatch(r"[!-~]+", text) else f"{SHOWN} is empty, or not one word; give {self.form}"

    def bytes_of(self, text: str) -> bytes:
        """As it is."""
        return text.encode("ascii")

    def length_of(self, ciphertext: str) -> int | None:  # noqa: ARG002 - any will do
        """Not needed before the value is known."""
        return None


def _is_secret(type_: Type) -> bool:
    return isinstance(type_.first if isinstance(type_, fields.Either) else type_, _Secret)


def _may_be_late(type_: Type) -> bool:
    if isinstance(type_, fields.Either):
        return _may_be_late(type_.first)
    return isinstance(type_, (fields.Address, fields.Mac, OverlayAddress, HostKey))


# -- models ----------------------------------------------------------------------------------


class _Unknown:
    """Stands in for the value of an unknown key: the error that pydantic makes for it carries this."""

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence


class Model(pydantic.BaseModel):
    """An object of a stack file. Its keys are the fields' names in camelCase; others are errors."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, alias_generator=json_name, arbitrary_types_allowed=True, protected_namespaces=()
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **more: Any) -> None:
        super().__pydantic_init_subclass__(**more)
        for name, field in cls.model_fields.items():
            if any(isinstance(one, Checked) and _is_secret(one.type) for one in field.metadata):
                errors.SECRET_KEYS.add(field.alias or name)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _mark_unknown_keys(cls, data: Any) -> Any:
        if data is None:  # `app:` with nothing below it
            return {}
        if not isinstance(data, Mapping):
            raise stop(f"{errors.shown(data)} {_NOT_AN_OBJECT}")
        keys = [field.alias or name for name, field in cls.model_fields.items()]
        return {
            key: value if key in keys else _Unknown(f"unknown key; {errors.instead(str(key), keys, all_of_them=True)}")
            for key, value in ((_word(key), inner) for key, inner in data.items())
        }


def _word(key: Any) -> str:
    """The key as text; pydantic does not take half a character (a lone surrogate) for text."""
    return key.encode("utf-8", "backslashreplace").decode() if isinstance(key, str) else errors.shown(key)


def with_fields_of(
    spec: type[Any], base: type[AModel], *, leave_out: Sequence[str], words: Mapping[str, str]
) -> type[AModel]:
    """The model `base` with a key for each attribute of the agent's spec, except those that the planner fills in.
    `words` describe them to the user; an attribute without is an error of whoever adds it."""
    options: dict[str, Any] = {
        field.name: (
            Annotated[Any, Checked(field.metadata["type"])],
            pydantic.Field(default=fields.default_of(field), description=words[field.name]),
        )
        for field in dataclasses.fields(spec)
        if field.name not in leave_out
    }
    made: type[AModel] = pydantic.create_model(base.__name__, __base__=base, __doc__=base.__doc__, **options)
    return made


def values_of(options: Model, spec: type[Any], *, leave_out: Sequence[str]) -> dict[str, Any]:
    """What the model holds of the spec's attributes, as keyword arguments of the spec."""
    return {f.name: getattr(options, f.name) for f in dataclasses.fields(spec) if f.name not in leave_out}


def secrets_in(options: Model) -> dict[str, Value]:
    """The secret values of the model, by key."""
    rows = ((field.alias or name, getattr(options, name)) for name, field in type(options).model_fields.items())
    return {key: value for key, value in rows if isinstance(value, Value)}


def read(model: type[AModel], data: Any) -> AModel:
    """The model within another one whose kind depends on the value; its errors keep their paths."""
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        raise PydanticCustomError("nested", "nested", {"wrong": wrongs(error)}) from None


def stop(sentence: str, *path: str) -> PydanticCustomError:
    """The exception with which a validator says what is wrong; `path`: where within its value."""
    # Of a list's or an object's values the sentence may name a single one, whole.
    sentence = re.sub(r"'[^']{129,}'|\S{129,}", lambda long: f"{long[0][:57]}...", sentence)
    return PydanticCustomError("nested", "nested", {"wrong": [(path, sentence)]})


def wrongs(error: pydantic.ValidationError) -> list[Wrong]:
    """Every error, in our words."""
    out: list[Wrong] = []
    for row in error.errors(include_url=False):
        path = tuple(part for part in row["loc"] if part != "[key]")
        context, value = row.get("ctx", {}), row["input"]
        if row["type"] == "nested":
            out += [(path + inner, sentence) for inner, sentence in context["wrong"]]
        elif row["type"] == "extra_forbidden" and isinstance(value, _Unknown):
            out.append((path, value.sentence))
        elif row["type"] == "missing":
            out.append((path, f"missing; {_MISSING.get(str(path[-1]), 'it has no default')}"))
        else:
            form = _NOT_A_LIST if row["type"] == "list_type" else _NOT_AN_OBJECT
            out.append((path, f"{errors.shown(value)} {form}"))
    return out


def path_text(path: Sequence[int | str]) -> str:
    """The path as people write it: segments.app.subnets[0]."""
    plain = re.compile(r"[\w.-]{1,128}")
    parts = (part if isinstance(part, int) or plain.fullmatch(part) else errors.shown(part) for part in path)
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")


# -- JSON Schema -----------------------------------------------------------------------------


def schema_of(type_: Type) -> dict[str, Any]:  # noqa: PLR0911 - a line for each type
    """The JSON Schema of a value: what an editor can check while one types."""
    if isinstance(type_, fields.Integer):
        return {"type": "integer", "minimum": type_.low, "maximum": type_.high}
    if isinstance(type_, fields.Flag):
        return {"type": "boolean"}
    if isinstance(type_, fields.Choice):
        return {"enum": list(type_.values)}
    if isinstance(type_, fields.Nothing):
        return {"type": "null"}
    if isinstance(type_, fields.Either):
        return {"anyOf": [schema_of(type_.first), schema_of(type_.second)]}
    if isinstance(type_, _Secret):
        encrypted = {"secure": {"type": "string", "description": _ENCRYPTED}}
        secure = {"type": "object", "properties": encrypted, "required": ["secure"], "additionalProperties": False}
        return {"anyOf": [{"type": "string"}, secure]}
    if isinstance(type_, OneOrMore):
        item = schema_of(type_.item)
        return {"anyOf": [item, {"type": "array", "items": item}]}
    if isinstance(type_, (fields.Range, NumberRange)):
        return {"type": "string", "pattern": "^[0-9]+-[0-9]+$"}
    return {"type": "string"}
