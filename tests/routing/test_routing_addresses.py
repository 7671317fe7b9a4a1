"""Addresses of servers: refused without repeating a key, equal in every spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenlens import SpecError
from tokenlens.evaluation.servers import checked_urls
from tokenlens.routing.addresses import read_address
from tokenlens.routing.discovery import check_urls

HOSTS = st.sampled_from(["a", "A.example", "127.0.0.1", "[::1]"])
PLACES = [
    "http://{key}@{host}", "http://u:{key}@{host}/v1", "https://{host}?key={key}",
    "http://{host}/v1#{key}", "http://u:{key}@{host}:port", "ftp://u:{key}@{host}",
    "http://u:{key}@", "u:{key}@{host}:80", "http://u:{key}@{host}:99999", "http://u:{key}@[::1",
    "http://u:{key}@{host}\n", "http://{host}/ ?{key}",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@given(host=HOSTS, key=st.text("xyzQ/:%", min_size=1, max_size=9).map("s3cret{}s3cret".format))
def test_no_error_repeats_a_key(place, host, key):
    url = place.format(host=host, key=key)
    for read in (lambda: check_urls({"small": url}), lambda: checked_urls([url])):
        with pytest.raises(SpecError) as caught:
            read()
        assert "s3cret" not in str(caught.value)


@given(host=HOSTS, port=st.sampled_from(["", ":80"]), end=st.sampled_from(["", "/", "/v1", "/v1/"]))
def test_an_address_in_another_spelling_is_the_same(host, port, end):
    url = f"http://{host}{port}{end}"
    assert read_address("small", url) == read_address("small", f"HTTP://{host.lower()}:80/v1")
    with pytest.raises(SpecError, match="another address than small's"):
        check_urls({"small": url, "large": f"http://{host.upper()}"})
    with pytest.raises(ValueError, match="twice"):
        checked_urls([url, f"http://{host.upper()}"])


@pytest.mark.parametrize("other", ["https://a", "http://b", "http://a:81", "http://a/x/v1"])
def test_other_addresses_are_others(other):
    check_urls({"small": "http://a", "large": other})
    assert len(checked_urls(["http://a/v1", other])) == 2
