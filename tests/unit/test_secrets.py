"""Secret values: what is taken, what is shown of them, and that a reference tells nothing but whether it changed."""

from __future__ import annotations

import base64
import dataclasses
from typing import Annotated, Any, ClassVar

import pytest

from overlay_agent import fields
from overlay_agent.kinds.base import attribute
from overlay_agent.secrets import ANOTHER, references
from overlay_agent.secrets import Secrets as Kept
from overlay_components import errors, model
from overlay_components.config import load_config
from overlay_components.errors import ConfigErrors
from overlay_components.model import Checked, Model, SecretHex, SecretKey
from overlay_components.names import Placeholder
from overlay_components.secrets import NO_DIGITS, Secrets, Value

KEY = base64.b64encode(bytes(range(32))).decode()


def test_a_value_never_shows_itself():
    value = SecretHex(4, 8).normal("c00c1ec0")
    assert f"{value} {value!r} {[value]}" == "<secret> <secret> [<secret>]"
    assert (value.content, value.length) == (bytes.fromhex("c00c1ec0"), 4)
    assert value == Value(bytes.fromhex("C00C1EC0"))
    assert Value(None) != Value(None)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (KEY, None),
        ("c00c1ec0", "6 bytes; give 32 bytes as base64, as `wg genpsk` prints"),
        (KEY[:-1], "<secret> is not base64; give 32 bytes as base64, as `wg genpsk` prints"),
        (True, "<secret> is not a text; give 32 bytes as base64, as `wg genpsk` prints"),
        (1234, "<secret> is not a text; put it in quotes"),
    ],
)
def test_keys(text, wrong):
    assert SecretKey().check(text) == wrong


def test_encrypted_values_are_taken_and_their_length_is_seen_where_it_can_be():
    def encrypted(length, head="v1:AAAAAAAAAAAAAAAA:"):
        return {"secure": head + base64.b64encode(bytes(length + 16)).decode()}

    hex_ = SecretHex(4, 8)
    assert hex_.check(encrypted(8)) is None
    assert [hex_.normal(encrypted(digits)).length for digits in (8, 16, 10)] == [4, 8, None]
    assert hex_.normal(encrypted(8, "v2:")).length is None
    assert hex_.normal({"secure": "v1:x:no base64"}).length is None
    assert SecretKey().normal(encrypted(44)).length == 32
    assert hex_.normal(Placeholder("<cookie of x>")).content is None




def test_keys_with_secrets_are_known_to_whatever_shows_values():
    class WithSecret(Model):
        """Has one."""

        pass_phrase: Annotated[Any, Checked(fields.optional(SecretHex(4)))] = None

    assert "passPhrase" in errors.SECRET_KEYS
    shown = errors.shown([{"a": {"passPhrase": "c00c1ec0"}}])
    assert shown == '[{"a": {"passPhrase": "<secret>"}}]'
    assert model.secrets_in(model.read(WithSecret, {"passPhrase": "c00c1ec0"})).keys() == {"passPhrase"}
    errors.SECRET_KEYS.remove("passPhrase")


def test_references_are_by_value_and_key():
    value, other = Value(b"1234"), Value(b"12345678")
    secrets = Secrets("key")
    first = secrets.refer("a", "cookie-app-core", value)
    assert fields.Secret().check(first) is None
    assert secrets.refer("b", "cookie-lab-core", Value(b"1234")) == first, "one value, one reference"
    assert secrets.refer("a", "cookie-app-core", other) != first
    assert Secrets("another").refer("a", "cookie-app-core", value) != first
    assert Secrets("key").refer("a", "cookie-app-core", value) == first
    assert dict(secrets.of)["b"] == {first: "31323334"}


@pytest.mark.parametrize("name", ["a:b", "x" * 300, "x" * 99 + "--" + "y"])
def test_a_reference_is_a_files_name(name):
    reference = Secrets("key").refer("a", name, Value(b"1234"))
    assert fields.Secret().check(reference) is None
    assert len(reference) < 128


def test_without_the_key():
    value = Value(b"1234")
    assert isinstance(Secrets().refer("a", "n", value), Placeholder)
    assert Secrets().refer("a", "n", value) == "n:<secret>"
    assert Secrets(unknown=NO_DIGITS).refer("a", "n", value) == "n:0000000000000000"
    assert Secrets("key").refer("a", "n", Value(None)) == "n:<secret>"


# -- the agent's side ------------------------------------------------------------------------

A, B = "a:0000000000000001", "b:0000000000000002"


NONE = ["x" * 20, "a:000000000000000", "a:000000000000000G", ":0000000000000001", "../a:0000000000000001", 5]


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_reference_is_not_shown(text):
    assert fields.Secret().check(text) == (
        "<secret> is not a reference to a secret (a name, a colon, 16 hexadecimal digits)"
    )


def test_references_are_found_wherever_a_spec_may_have_them():
    record = fields.Record({"key": fields.optional(fields.Secret()), "name": fields.Label()}, frozenset({"key"}))

    @dataclasses.dataclass(frozen=True)
    class Spec:
        KIND: ClassVar[str] = "x"
        one: object = attribute(fields.optional(fields.Secret()), default=None)
        peers: object = attribute(fields.Keyed("peer", fields.Label(), record), default={})
        list_: object = attribute(fields.Items(fields.Secret()), default=[])
        text: object = attribute(fields.Label(), default="x")

    assert references([Spec()]) == set()
    assert references([Spec(one=A, text=B)]) == {A}
    assert references([Spec(peers={"p": {"key": A, "name": "n"}, "q": {"name": B}}), Spec(list_=[B])]) == {A, B}


def test_a_value_is_found_by_the_documents_own_reference(tmp_path):
    kept = Kept(str(tmp_path), "p/s")
    assert kept.reference_of(b"1234") == ANOTHER
    assert kept.write(A, b"1234")
    assert kept.write(B, b"1234")
    assert not kept.write(B, b"1234")
    assert kept.reference_of(b"1234") == A
    assert Kept(str(tmp_path), "p/s", [B]).reference_of(b"1234") == B
    assert kept.reference_of(b"1234", B) == B
    assert kept.read(B) == b"1234"
    assert Kept(str(tmp_path), "p/s", [A, "c:0000000000000003"]).missing() == ["c:0000000000000003"]
    assert Kept(str(tmp_path), "p/t").references() == []
    assert Kept().reference_of(b"1234") == ANOTHER
    assert kept.keep([A]) == [B]
    assert kept.keep(()) == [A]
    assert not (tmp_path / "secrets").exists()


def test_config_errors_of_a_segment_as_a_list_show_no_secret(monkeypatch):
    monkeypatch.setattr(errors, "SECRET_KEYS", {"cookie"})
    with pytest.raises(ConfigErrors) as caught:
        load_config({"hosts": {"a": {"address": "192.0.2.1"}}, "segments": [{"cookie": "c00c1ec0"}]})
    [error] = caught.value.errors
    assert error == 'segments: [{"cookie": "<secret>"}] is not an object; write `key: value` lines below it'
