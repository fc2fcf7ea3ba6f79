"""Which provider addresses the gateway connects to: as written, and as resolved."""

from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.process.addresses import AddressRefused, check_base_url, check_resolved, embedded

PLAIN = [
    "https://api.openai.com/v1",
    "http://127.0.0.1:11434/v1",
    "http://127.8.9.1/v1",
    "http://10.0.0.5:8000",
    "http://192.168.1.10/v1",
    "http://172.16.0.1/v1",
    "http://100.64.0.1/v1",
    "http://[::1]:8080/v1",
    "http://[fd12:3456::1]/v1",
    "http://localhost:1234/v1",
    "http://ollama:11434/v1",
    "https://my_host.example.com./v1",
    "https://8.8.8.8/v1",
    "https://[2001:4860:4860::8888]/v1",
    "https://xn--mller-kva.example/v1",
    "HTTPS://Example.COM/v1",
]
INSIDE = [
    "http://169.254.169.254/latest",
    "http://169.254.0.1/v1",
    "http://[fe80::1]/v1",
    "http://[fe80::1%25eth0]/v1",
    "http://[fd00:ec2::254]/v1",
    "http://100.100.100.200/v1",
    "http://168.63.129.16/v1",
    "http://192.0.0.192/v1",
    "http://metadata.google.internal/v1",
    "http://METADATA.google.internal./v1",
    "http://metadata/v1",
    "http://instance-data/v1",
    "http://0.0.0.0:8080/v1",
    "http://0.1.2.3/v1",
    "http://[::]/v1",
    "http://224.0.0.1/v1",
    "http://255.255.255.255/v1",
    "http://240.0.0.1/v1",
    "http://[ff02::1]/v1",
    # disguises
    "http://2130706433/v1",
    "http://0x7f000001/v1",
    "http://0x7f.0.0.1/v1",
    "http://0X7F.1/v1",
    "http://0177.0.0.1/v1",
    "http://127.1/v1",
    "http://127.0.0.1./v1",
    "http://127.0.0.0x1/v1",
    "http://10.0.0.08/v1",
    "http://1.2.3.4.5/v1",
    "http://256.1.1.1/v1",
    "http://[::ffff:127.0.0.1]/v1",
    "http://[::ffff:169.254.169.254]/v1",
    "http://[::ffff:a9fe:a9fe]/v1",
    "http://[::127.0.0.1]/v1",
    "http://[64:ff9b::169.254.169.254]/v1",
    "http://[64:ff9b::a9fe:a9fe]/v1",
    "http://[2002:7f00:1::]/v1",
    "http://[2001:0:a9fe:a9fe::1]/v1",
    "http://[0:0:0:0:0:0:0:1]/v1",
    "http://[::0001]/v1",
    "http://127.0.0.1%2e/v1",
    "http://%31%32%37.0.0.1/v1",
    "http://host name/v1",
]
BROKEN = [
    "",
    "api.openai.com/v1",
    "//api.openai.com/v1",
    "file:///etc/passwd",
    "gopher://127.0.0.1/",
    "ftp://example.com/",
    "unix:///run/x.sock",
    "http://",
    "http:///v1",
    "http://user@example.com/v1",
    "http://user:pass@example.com/v1",
    "http://@example.com/v1",
    "http://example.com@169.254.169.254/",
    "http://example.com\\@169.254.169.254/",
    "http://example.com/v1?x=1",
    "http://example.com/v1?",
    "http://example.com/v1#x",
    "http://example.com:0/v1",
    "http://example.com:99999/v1",
    "http://example.com:abc/v1",
    "http://exa\nmple.com/v1",
    " http://example.com/v1",
    "http://example.com/v1 ",
    "http://1\uff127.0.0.1/v1",
    "http://①②⑦.0.0.1/v1",
    "http://exämple.com/v1",
    "http://[::1/v1",
    "http://[example.com]/v1",
    "http://[v1.x]/v1",
]


@pytest.mark.parametrize("url", PLAIN)
def test_a_plainly_written_address_is_good(url: str) -> None:
    check_base_url(url)


@pytest.mark.parametrize("url", INSIDE)
def test_what_leads_inside_is_refused(url: str) -> None:
    with pytest.raises(AddressRefused):
        check_base_url(url)


@pytest.mark.parametrize("url", [url for url in INSIDE if "%" not in url and " " not in url])
def test_what_leads_inside_is_good_where_it_is_allowed(url: str) -> None:
    check_base_url(url, allow_address=True)


@pytest.mark.parametrize("url", BROKEN)
@pytest.mark.parametrize("allow", [True, False])
def test_what_is_no_plain_url_is_refused_always(url: str, allow: bool) -> None:
    with pytest.raises(AddressRefused):
        check_base_url(url, allow)


PRIVATE = ["127.0.0.1", "10.0.0.1", "192.168.0.1", "172.31.255.255", "100.64.0.1", "::1", "fd00::1", "198.18.0.1"]
NEVER = [
    "169.254.169.254",
    "fe80::1",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "100.100.100.200",
    "fd00:ec2::254",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::",
    "::ffff:0.0.0.0",
]


@pytest.mark.parametrize(
    "address", [*PRIVATE, *NEVER, "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "2002:7f00:1::"]
)
def test_a_name_that_turns_out_to_lead_inside_is_refused_at_connect(address: str) -> None:
    with pytest.raises(AddressRefused):
        check_resolved("api.example.com", address)
    check_resolved("api.example.com", address, allow_address=True)


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_was_written_is_itself(address: str) -> None:
    check_resolved(address, address)
    check_resolved(f"[{address}]" if ":" in address else address, ipaddress.ip_address(address))


@pytest.mark.parametrize("address", NEVER)
def test_some_addresses_are_refused_though_they_were_written(address: str) -> None:
    with pytest.raises(AddressRefused):
        check_resolved(address, address)


def test_an_address_that_was_written_stands_for_no_other() -> None:
    with pytest.raises(AddressRefused):
        check_resolved("10.0.0.1", "10.0.0.2")


def test_localhost_is_loopback_and_nothing_else() -> None:
    check_resolved("localhost", "127.0.0.1")
    check_resolved("LOCALHOST.", "::1")
    check_resolved("api.localhost", "127.0.0.1")
    with pytest.raises(AddressRefused):
        check_resolved("localhost", "10.0.0.1")
    with pytest.raises(AddressRefused):
        check_resolved("localhost.example.com", "127.0.0.1")


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_a_name_in_the_open_is_good(address: str) -> None:
    check_resolved("api.example.com", address)


@given(st.ip_addresses())
def test_no_name_reaches_an_address_that_is_not_in_the_open(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    try:
        check_resolved("api.example.com", address)
    except AddressRefused:
        return
    assert (embedded(address) or address).is_global


@given(st.text(max_size=60))
def test_any_text_is_judged_without_another_error(text: str) -> None:
    for url in (text, f"http://{text}/v1"):
        with contextlib.suppress(AddressRefused):
            check_base_url(url)
