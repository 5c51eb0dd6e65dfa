"""How targets are written, and everything that is refused."""

from __future__ import annotations

import re

import pytest

from onnxopt.errors import SpecError
from onnxopt.runtime.target import ALIASES, GROUPS, NATIVE, TARGETS
from onnxopt.targets.spec import PROVIDERS, Address, parse_targets


def names(text: str) -> list[str]:
    return [wanted.name for wanted in parse_targets(text)]


def device(text: str) -> Address:
    (wanted,) = parse_targets(text)
    assert wanted.address is not None
    return wanted.address


def test_names_aliases_and_groups_each_once_and_in_their_order() -> None:
    assert names("x86-64-avx2, native,x86-64-avx2,haswell") == ["x86-64-avx2", "native"]
    assert names("raspberrypi4") == ["arm64-cortex-a72"]
    assert names("arm64-neoverse-n1,arm64") == ["arm64-neoverse-n1", *(t.name for t in GROUPS["arm64"])]
    assert names(",".join(GROUPS)) == [
        *names("x86"),
        *names("arm64"),
        *(n for n in names("all") if n[:3] == "arm" and n not in names("arm64")),
    ]
    assert [names(alias) for alias in ALIASES] == [[name] for name in ALIASES.values()]


def test_execution_providers() -> None:
    (wanted,) = parse_targets("native+xnnpack")
    assert (wanted.name, wanted.target.name, wanted.provider) == (
        *("native+xnnpack", "native+xnnpack"),
        PROVIDERS["xnnpack"],
    )
    assert wanted.target.saturates is NATIVE.saturates


def test_addresses() -> None:
    assert device("ssh://kitchen") == Address("kitchen")
    assert device("ssh://pi@Kitchen.local:2222/") == Address("Kitchen.local", "pi", 2222)
    assert device("ssh://me@corp.example@host") == Address("host", "me@corp.example")
    assert device("ssh://h?python=/opt/my%20venv/bin/c++%2C3&threads=4") == Address(
        "h", python="/opt/my venv/bin/c++,3", threads=4
    )
    assert device("ssh://h?python=a%26b") == Address("h", python="a&b")
    assert device("ssh://root@[::1]:22") == Address("::1", "root", 22)
    assert device("ssh://[fe80::1%eth0]").host == "fe80::1%eth0"
    assert names("ssh://pi@kitchen:22?threads=2, ssh://[::1]:22") == ["ssh://pi@kitchen:22", "ssh://[::1]:22"]
    assert len(parse_targets("ssh://a?threads=2,ssh://a?threads=2,ssh://b")) == 2


@pytest.mark.parametrize(
    "text",
    ["native+xnnpack", "arm64-cortex-a72", "ssh://[fe80::1%eth0]:22", "ssh://pi@h?python=/a%20b%2C%26/c++&threads=4"],
)
def test_what_is_spelled_is_read_again(text: str) -> None:
    (wanted,) = parse_targets(text)
    assert parse_targets(wanted.spelled) == (wanted,)
    assert wanted.spelled.replace("%2B", "+") == text


NO_ADDRESS = "is no address of a device: write ssh://user@host:port?python=python3&threads=1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "name at least one target, such as native or x86-64-avx2"),
        (" , ,", "name at least one target"),
        ("avx2", "no target is named 'avx2'; did you mean 'x86-64-avx2'"),
        ("any", "no target is named 'any'"),
        ("NATIVE", "no target is named 'NATIVE'"),
        ("native+cpu", "'native+cpu' is no target: write native+ and one of acl, armnn,"),
        ("x86-64-avx2+xnnpack", "'x86-64-avx2+xnnpack' is no target: write native+ and one of"),
        ("native+", "'native+' is no target"),
        ("ssh://a,ssh://a?threads=2", "the device ssh://a is named twice, with different options: name it once"),
        ("ssh://h:0", "has the port 0: write a number from 1 to 65535"),
        ("ssh://h:65536", "has the port 65536"),
        ("ssh://h?threads=0", "has threads=0: write a number from 1 to 256"),
        ("ssh://h?threads=257", "has threads=257"),
        ("ssh://h?threads=1e2", "has threads=1e2"),
        ("ssh://h?threads=%D9%A3", "has threads=٣"),
        ("ssh://h?threads=", "has threads=: write"),
        ("ssh://h?threads=99999999999999999999", "has threads=9999"),
        ("ssh://h?python=-c", "has python='-c': name the interpreter on the device"),
        ("ssh://h?python=%2Dc", "has python='-c'"),
        ("ssh://h?python=", "has python=''"),
        ("ssh://h?python=%20", "has python=' '"),
        ("ssh://h?python=a%0Ab", r"has python='a\nb'"),
        ("ssh://h?python=a%00b", r"has python='a\x00b'"),
        ("ssh://h?python=a&python=b", "has python twice: write it once"),
        ("ssh://h?pyton=a", "has the option 'pyton', which is unknown; did you mean 'python'"),
        ("ssh://h?%70ython=a", "has the option '%70ython', which is unknown"),
        ("ssh://h?python", "has an option 'python' without a value"),
        ("ssh://h?", "has an option '' without a value"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        parse_targets(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "ssh://",
            "ssh:///path",
            "ssh://@h",
            "ssh://h/path",
            "ssh://h#f",
            "ssh://user:secret@h",
            "ssh://h:",
            "ssh://h:2x",
        ),
        *("ssh://-oProxyCommand=x", "ssh://-h", "ssh://-l@h", "ssh://h@-oProxyCommand=x", "ssh://%2DoProxyCommand=x"),
        *(
            "ssh://a%20b",
            "ssh://a b",
            "ssh://h;id",
            "ssh://h|id",
            "ssh://`id`",
            "ssh://$(id)",
            "ssh://h'x",
            'ssh://h"x',
        ),
        *("ssh://a%40b", "ssh://u%0a@h", "ssh://$(id)@h", "ssh://u;id@h", "ssh://%h@h", "ssh://h\nx", "ssh://h\\x"),
        *("ssh://[::1", "ssh://::1", "ssh://[::1%]", "ssh://[::1%;id]", "ssh://[-o]", "ssh://höst", "ssh://h:²"),
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(SpecError, match=re.escape(NO_ADDRESS)):
        parse_targets(text)


def test_every_message_is_one_line() -> None:
    with pytest.raises(SpecError) as refused:
        parse_targets("ssh://h\n;id")
    assert "\n" not in str(refused.value)


def test_what_can_be_run_is_in_a_group() -> None:
    runnable = {t.name for t in TARGETS.values()} - {"any", "arm64"}
    assert runnable == {t.name for t in GROUPS["all"]}
